"""A journal is whole after any interruption, or says what is damaged."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from journal_examples import RUN, assert_same_array, drawn_edit, filled, step
from study_examples import no_space

from jaxedit.edits.edit import edit_to_arrays, read_edit
from jaxedit.study.journal import open_journal, read_journal


@pytest.mark.parametrize("missing", [1, 2, 40])
def test_a_last_line_cut_short_is_left_out_and_cut_off_when_opened_for_writing(tmp_path, missing):
    journal = filled(tmp_path / "run")
    path = tmp_path / "run" / "journal.jsonl"
    whole = path.read_bytes()
    two = b"".join(whole.splitlines(keepends=True)[:2])
    path.write_bytes(whole[:-missing])
    assert [s.record.step for s in read_journal(tmp_path / "run").steps] == [0, 1]
    assert (
        path.read_bytes() == whole[:-missing]
    )  # whoever only reads changes nothing: the study may be running
    journal = open_journal(tmp_path / "run", RUN)
    assert [s.record.step for s in journal.steps] == [0, 1]
    assert path.read_bytes() == two
    journal.append(step(2), *edit_to_arrays(drawn_edit(2)))
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "damage", [b"\0" * 30, b'{"step": 2', b"\xff\xfe\n", b"null\n", b"17\n", b'{"step": 2}\n']
)
def test_a_last_line_that_is_no_step_is_left_out(tmp_path, damage):
    filled(tmp_path / "run", 2)
    with (tmp_path / "run" / "journal.jsonl").open("ab") as file:
        file.write(damage)
    assert len(read_journal(tmp_path / "run").steps) == 2
    open_journal(tmp_path / "run", RUN).append(step(2), {}, {})
    assert len(read_journal(tmp_path / "run").steps) == 3


@pytest.mark.parametrize(
    "damage", [lambda line: line[:20] + b"\n", lambda line: b"[]\n", lambda line: b"\n"]
)
def test_a_damaged_line_before_the_last_raises(tmp_path, damage):
    filled(tmp_path / "run")
    path = tmp_path / "run" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = damage(lines[1])
    path.write_bytes(b"".join(lines))
    for opening in (
        lambda: read_journal(tmp_path / "run"),
        lambda: open_journal(tmp_path / "run", RUN),
    ):
        with pytest.raises(
            ValueError,
            match=r"journal\.jsonl, line 2 is damaged, and more lines follow; restore it",
        ):
            opening()
    assert path.read_bytes() == b"".join(lines)  # nothing is thrown away


def test_missing_arrays_raise(tmp_path):
    filled(tmp_path / "run")
    (tmp_path / "run" / "steps" / "000001.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"line 2 names steps/000001\.safetensors, which is gone; restore it"
    ):
        open_journal(tmp_path / "run", RUN)


def test_damaged_arrays_raise(tmp_path):
    journal = filled(tmp_path / "run", 1)
    path = journal.steps[0].arrays
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"000000\.safetensors cannot be read"):
        read_edit(path)
    journal.append(step(1), {"nll_nats": np.zeros(3)}, {})
    with pytest.raises(ValueError, match="holds no edit"):
        read_edit(tmp_path / "run" / "steps" / "000001.safetensors")


@pytest.mark.parametrize("at", ["arrays", "line"])
@pytest.mark.parametrize("by", ["fsync", "write"])
def test_a_full_disk_leaves_the_journal_whole(tmp_path, monkeypatch, at, by):
    journal = filled(tmp_path / "run", 2)
    lines = tmp_path / "run" / "journal.jsonl"
    before = lines.read_bytes()
    if by == "fsync":
        calls = iter([no_space] if at == "arrays" else [os.fsync, os.fsync, no_space])
        monkeypatch.setattr(os, "fsync", lambda descriptor: next(calls)(descriptor))
    else:
        opened, full = Path.open, ".part" if at == "arrays" else ".jsonl"
        wrap = {full: Half}
        monkeypatch.setattr(
            Path,
            "open",
            lambda path, mode: wrap.get(path.suffix, lambda file: file)(opened(path, mode)),
        )
    with pytest.raises(OSError, match="No space left on device") as caught:
        journal.append(step(2), *edit_to_arrays(drawn_edit(2)))
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert f"step 2 could not be written to {tmp_path / 'run'}" in str(caught.value)
    assert "make room and run the same command again to go on" in str(caught.value)
    assert lines.read_bytes() == before
    assert not list((tmp_path / "run").rglob("*.part"))
    assert [s.record.step for s in read_journal(tmp_path / "run").steps] == [0, 1]
    journal.append(step(2), *edit_to_arrays(drawn_edit(2)))  # there is room again
    steps = open_journal(tmp_path / "run", RUN).steps
    assert [s.record.step for s in steps] == [0, 1, 2]
    assert_same_array(
        read_edit(steps[2].arrays).deltas[1].delta_FD, drawn_edit(2).deltas[1].delta_FD
    )


class Half:
    """A file on a disk that has room for half of what is written to it."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content: bytes):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        no_space()


def test_a_disk_that_was_full_from_the_start_can_be_used_later(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left on device"):
        open_journal(tmp_path / "run", RUN)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "run.json").exists()
    assert len(filled(tmp_path / "run", 1).steps) == 1
