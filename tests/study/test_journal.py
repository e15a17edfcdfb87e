"""The journal: bit for bit there and back, whole after any interruption, of one study only."""

import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from jaxedit import Dense, LowRank
from jaxedit.edits.edit import Edit
from jaxedit.edits.serialise import edit_to_arrays, read_edit
from jaxedit.files import to_json
from jaxedit.study.journal import open_journal, read_journal
from jaxedit.study.record import SCHEMA, StepRecord

RUN = {
    "config": {"model": "tiny", "n_facts": 2, "editor": {"v_lr": 0.5, "layers": (1, 2)}},
    "facts_sha256": "abc",
}
LAYOUT = {"mlp/w_down": ("model.layers.{l}.mlp.down_proj.weight", "D F -> F D")}


def make_edit(seed: int = 0) -> Edit:
    """Draw deltas of both kinds and memory of several dtypes and ranks; no number is round."""
    rng = np.random.default_rng(seed)
    deltas = (
        LowRank(
            "mlp/w_down",
            2,
            rng.standard_normal((6, 2), np.float32),
            rng.standard_normal((2, 4), np.float32),
        ),
        Dense("mlp/w_down", 3, np.asfortranarray(rng.standard_normal((6, 4), np.float32))),
        LowRank(
            "mlp/w_down",
            5,
            np.full((6, 1), np.nan, np.float32),
            np.full((1, 4), -np.inf, np.float32),
        ),
    )
    memory = {
        "keys": rng.standard_normal((3, 6)),
        "tokens": np.arange(4),
        "scale": np.array(0.1, np.float32),
    }
    return Edit(deltas, memory, LAYOUT)


def assert_same_array(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def step(number: int) -> StepRecord:
    return StepRecord(step=number, subject="Zürich | 東京\n", kept=number % 2 == 1)


def filled(folder: Path, n_steps: int = 3, run=RUN):
    """Write a journal with this many steps; return it opened anew."""
    journal = open_journal(folder, run)
    for number in range(n_steps):
        journal.append(step(number), *edit_to_arrays(make_edit(number)))
    return open_journal(folder, run)


def test_an_edit_comes_back_bit_for_bit(tmp_path):
    edit = make_edit()
    open_journal(tmp_path / "run", RUN).append(step(0), *edit_to_arrays(edit))
    (line,) = read_journal(tmp_path / "run").steps
    again = read_edit(line.arrays)
    assert [type(delta) for delta in again.deltas] == [LowRank, Dense, LowRank]
    for ours, theirs in zip(edit.deltas, again.deltas, strict=True):
        assert (ours.weight, ours.layer) == (theirs.weight, theirs.layer)
        for a, b in zip(ours[2:], theirs[2:], strict=True):
            assert_same_array(a, b)
    assert sorted(again.memory) == ["keys", "scale", "tokens"]
    for name, array in edit.memory.items():
        assert_same_array(array, again.memory[name])
    assert again.hf_layout == LAYOUT
    before, after = edit.dense(), again.dense()
    assert (
        list(before) == list(after) == [f"model.layers.{l}.mlp.down_proj.weight" for l in (2, 3, 5)]
    )
    for name in before:
        assert_same_array(before[name], after[name])


def test_steps_come_back_in_order(tmp_path):
    journal = filled(tmp_path / "a" / "run")  # folders are made
    assert [s.record for s in journal.steps] == [
        dataclasses.replace(step(n), arrays=f"steps/00000{n}.safetensors") for n in range(3)
    ]
    assert journal.run == {"schema": SCHEMA, **to_json(RUN)}
    assert read_journal(tmp_path / "a" / "run").steps == journal.steps
    assert sorted(path.name for path in (tmp_path / "a" / "run").rglob("*")) == [
        *(f"00000{n}.safetensors" for n in range(3)),
        "journal.jsonl",
        "run.json",
        "steps",
    ]


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
    journal.append(step(2), *edit_to_arrays(make_edit(2)))
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


def test_another_study_is_refused_by_the_keys_that_differ(tmp_path):
    filled(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    other = {
        "config": {"model": "tiny", "n_facts": 5, "editor": {"v_lr": 0.3, "layers": (1, 2)}},
        "facts_sha256": "abd",
    }
    with pytest.raises(ValueError, match="belongs to another study") as caught:
        open_journal(tmp_path / "run", other, may_differ=("config.n_facts",))
    message = str(caught.value)
    assert "config.editor.v_lr: 0.5 there, 0.3 now" in message
    assert 'facts_sha256: "abc" there, "abd" now' in message
    assert "n_facts" not in message
    assert "model" not in message
    assert "layers" not in message  # a tuple is what JSON makes a list of
    assert "--workdir" in message
    with pytest.raises(ValueError, match=r"config\.n_facts: 2 there, 5 now"):
        open_journal(tmp_path / "run", other)
    fewer = {
        "config": {"model": "tiny", "n_facts": 2, "editor": {"v_lr": 0.5}},
        "facts_sha256": "abc",
        "new": 1,
    }
    with pytest.raises(
        ValueError,
        match=r"config\.editor\.layers: \[1, 2\] there, null now; new: null there, 1 now",
    ):
        open_journal(tmp_path / "run", fewer)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_what_may_differ_is_taken_over(tmp_path):
    filled(tmp_path / "run")
    more = {**RUN, "config": {**RUN["config"], "n_facts": 7}}
    assert len(open_journal(tmp_path / "run", more, may_differ=("config.n_facts",)).steps) == 3
    assert read_journal(tmp_path / "run").run == {
        "schema": SCHEMA,
        **to_json(more),
    }  # the report shows what was run last


@pytest.mark.parametrize("name", ["notes.txt", "steps/000001.safetensors"])
def test_a_folder_with_other_things_in_it_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        ValueError, match="is not empty and is not a study's work directory; give another --workdir"
    ):
        open_journal(tmp_path, RUN)
    with pytest.raises(ValueError, match=r"is not a study's work directory: it has no run\.json"):
        read_journal(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\udcff"])
def test_a_run_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"run\.json is not JSON|belongs to another study"):
        open_journal(tmp_path, RUN)
    assert (tmp_path / "run.json").read_bytes() == content.encode(errors="surrogateescape")


def test_an_empty_folder_is_taken(tmp_path):
    assert open_journal(tmp_path, RUN).steps == []
    assert json.loads((tmp_path / "run.json").read_text())["config"]["editor"] == {
        "v_lr": 0.5,
        "layers": [1, 2],
    }


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("at", ["arrays", "line"])
@pytest.mark.parametrize("by", ["fsync", "write"])
def test_a_full_disk_leaves_the_journal_whole(tmp_path, monkeypatch, at, by):
    journal = filled(tmp_path / "run", 2)
    lines = tmp_path / "run" / "journal.jsonl"
    before = lines.read_bytes()
    if by == "fsync":
        calls = iter([no_space] if at == "arrays" else [os.fsync, no_space])
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
        journal.append(step(2), *edit_to_arrays(make_edit(2)))
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert f"step 2 could not be written to {tmp_path / 'run'}" in str(caught.value)
    assert "make room and run the same command again to go on" in str(caught.value)
    assert lines.read_bytes() == before
    assert not list((tmp_path / "run").rglob("*.part"))
    assert [s.record.step for s in read_journal(tmp_path / "run").steps] == [0, 1]
    journal.append(step(2), *edit_to_arrays(make_edit(2)))  # there is room again
    steps = open_journal(tmp_path / "run", RUN).steps
    assert [s.record.step for s in steps] == [0, 1, 2]
    assert_same_array(
        read_edit(steps[2].arrays).deltas[1].delta_FD, make_edit(2).deltas[1].delta_FD
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


def test_numbers_that_are_not_finite_survive_in_strict_json(tmp_path):
    numbers = {"a": math.inf, "b": [-math.inf, math.nan], "c": np.float32("inf"), "d": (1, 2)}
    journal = open_journal(tmp_path / "run", {**RUN, "limit": math.inf})
    written = dataclasses.replace(step(0), edit_norm=math.nan, optimisation=numbers)
    journal.append(written, {}, {})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for name in ("journal.jsonl", "run.json"):
        json.loads((tmp_path / "run" / name).read_text(encoding="utf-8"), parse_constant=refuse)
    record = read_journal(tmp_path / "run").steps[0].record
    assert math.isnan(record.edit_norm)
    assert (record.optimisation["a"], record.optimisation["c"]) == (math.inf, math.inf)
    assert record.optimisation["d"] == [1, 2]
    assert to_json(np.array([1.5, np.nan])) == [1.5, "nan"]
    assert to_json({"n": np.int64(3), "truth": np.bool_(True), "none": None}) == {
        "n": 3,
        "truth": True,
        "none": None,
    }
