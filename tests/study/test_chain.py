"""A study's files are tied together: what was changed, lost, doubled or exchanged is named."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from journal_examples import RUN, drawn_edit, filled, step
from rewritten import as_older, rewrite_lines

from jaxedit.edits.edit import edit_to_arrays, read_edit
from jaxedit.study import journal_lines
from jaxedit.study.chain import digest_file
from jaxedit.study.journal import open_journal, read_journal

N_STEPS = 5


@pytest.fixture
def folder(tmp_path) -> Path:
    return filled(tmp_path / "run", N_STEPS).folder


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def write_lines(folder: Path, lines: list[bytes]) -> None:
    (folder / "journal.jsonl").write_bytes(b"".join(lines))


def assert_refused(folder: Path, message: str) -> None:
    """Whoever reads the journal and whoever goes on with it are refused, and change nothing."""
    before = (folder / "journal.jsonl").read_bytes()
    for opening in (lambda: read_journal(folder), lambda: open_journal(folder, RUN)):
        with pytest.raises(ValueError, match=message):
            opening()
    assert (folder / "journal.jsonl").read_bytes() == before


KYOTO = ("東".encode(), "京".encode())
SET_PIECES = {
    "lost": (lambda x: [*x[:2], *x[3:]], "line 3 does not follow the line before it"),
    "doubled": (lambda x: [*x[:3], x[2], *x[3:]], "line 4 does not follow the line before it"),
    "doubled at the end": (lambda x: [*x, x[-1]], "line 6 does not follow the line before it"),
    "exchanged": (lambda x: [x[0], x[2], x[1], *x[3:]], "line 2 does not follow the line"),
    "the first gone": (lambda x: x[1:], "does not belong to the run.json beside it"),
    "a key changed": (lambda x: [x[0], x[1].replace(b"true", b"false"), *x[2:]], "line 2 was"),
    "the last one changed": (lambda x: [*x[:-1], x[-1].replace(*KYOTO)], "line 5 was changed"),
    "without digests": (
        lambda x: [*x[:-1], re.sub(rb', "(arrays_digest|previous|digest)": "\w+"', b"", x[-1])],
        "line 5 has lost its digests",
    ),
}


@pytest.mark.parametrize("piece", SET_PIECES)
def test_what_happened_to_lines_is_named_with_what_to_do(folder, piece):
    change, message = SET_PIECES[piece]
    lines = lines_of(folder)
    write_lines(folder, change(lines))
    assert_refused(folder, message)
    with pytest.raises(ValueError, match=r"restore (it|both) from a copy") as caught:
        read_journal(folder)
    # The way that the message names works: the journal cut there is one of the steps before.
    cut = re.search(r"`truncate -s (\d+) (\S+)`", str(caught.value))
    if cut is not None:
        os.truncate(cut[2], int(cut[1]))
        steps = open_journal(folder, RUN).steps
        assert [each.record for each in steps] == [
            dataclasses.replace(step(n), arrays=f"steps/00000{n}.safetensors")
            for n in range(len(steps))
        ]
        assert 0 < len(steps) < N_STEPS + 1


def test_another_studys_line_is_named(folder, tmp_path):
    """Also where it has the same number, or was the last one."""
    other = open_journal(tmp_path / "other", {**RUN, "facts_sha256": "def"})
    for number in range(N_STEPS):
        other.append(step(number), *edit_to_arrays(drawn_edit(number)))
    own, foreign = lines_of(folder), lines_of(tmp_path / "other")
    for at in (2, N_STEPS - 1):
        write_lines(folder, [*own[:at], foreign[at], *own[at + 1 :]])
        assert_refused(folder, rf"line {at + 1} does not follow the line before it")
    write_lines(folder, foreign)
    assert_refused(folder, r"journal\.jsonl does not belong to the run\.json beside it")


def test_files_of_steps_that_were_exchanged_are_named(folder, tmp_path):
    a, b = (folder / "steps" / f"00000{n}.safetensors" for n in (1, 2))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    read_journal(folder)  # whoever reads no arrays does not read them
    with pytest.raises(ValueError, match=r"line 2 names steps/000001\.safetensors, which is not"):
        open_journal(folder, RUN)
    with pytest.raises(ValueError, match=r"000001\.safetensors is not the file that step 1 wrote"):
        read_journal(folder).steps[1].read_edit()


@pytest.mark.parametrize("name", ["../outside.safetensors", "steps/000003.safetensors", 5, None])
def test_a_step_names_its_own_file(folder, name):
    (folder.parent / "outside.safetensors").write_bytes(b"x")
    rewrite_lines(folder, lambda line: line["step"] == 2 and line.update(arrays=name))
    assert_refused(
        folder, r"line 3 (names .* as the arrays of step 2|is no step of a study: 'arrays')"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(perplexity="low"), "could not convert|'perplexity' has the wrong type"),
        (dict(perplexity={"pooled": 3.0}), "no 'mean' under 'perplexity'"),
        (dict(perplexity={"mean": None}), "'perplexity' has the wrong type"),
        (dict(kept=None), "nothing under 'kept'"),
        (dict(kept=1), "'kept' has the wrong type"),
        (dict(step="2"), "no number under 'step'"),
        (dict(step=7), "expected|is step 7"),
        (dict(metrics=[1]), "'metrics' has the wrong type"),
        (dict(metrics={"probability_new": [1]}), "'metrics' has the wrong type"),
        (dict(prompt=["a"]), "'prompt' has the wrong type"),
        (dict(kind="wonder"), "'kind' has the wrong type"),
        (dict(retention={"1": 3}), "'retention' has the wrong type"),
        (dict(n_requests=True), "'n_requests' has the wrong type"),
    ],
    ids=str,
)
def test_a_line_of_an_older_version_is_typed(folder, values, message):
    as_older(folder)
    lines = [json.loads(line) for line in lines_of(folder)]
    lines[2].update(values)
    write_lines(folder, [json.dumps(line).encode() + b"\n" for line in lines])
    with pytest.raises(ValueError, match=rf"journal\.jsonl, line 3 .*({message})"):
        read_journal(folder)


def test_a_last_line_whose_arrays_are_damaged_is_made_again(folder, caplog):
    """A power cut may take a file that the line names; the line is then cut off, with a word."""
    whole, path = lines_of(folder), folder / "steps" / f"00000{N_STEPS - 1}.safetensors"
    content = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(content[:-3])):
        damage()
        assert len(read_journal(folder).steps) == N_STEPS - 1
        assert lines_of(folder) == whole
        journal = open_journal(folder, RUN)
        assert "line 5 names steps/000004.safetensors, which is" in caplog.text
        assert "makes it again" in caplog.text
        assert lines_of(folder) == whole[:-1]
        journal.append(step(N_STEPS - 1), *edit_to_arrays(drawn_edit(N_STEPS - 1)))
        assert lines_of(folder) == whole


def test_a_second_writer_is_noticed_without_locks(folder):
    """The journal is compared with what was last written; the other's files stay as they are."""
    first, second = open_journal(folder, RUN), open_journal(folder, RUN)
    second.append(step(N_STEPS), *edit_to_arrays(drawn_edit(8)))
    path, lines = folder / "steps" / f"00000{N_STEPS}.safetensors", lines_of(folder)
    for writing in (
        lambda: first.append(step(N_STEPS), *edit_to_arrays(drawn_edit(9))),
        lambda: first.append_undo([1]),
    ):
        with pytest.raises(ValueError, match="another process writes to this folder"):
            writing()
    assert lines_of(folder) == lines
    assert_same_bytes(path, drawn_edit(8))
    # As long as before, with another last line.
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b"5", b"6"))
    with pytest.raises(ValueError, match="another process writes to this folder"):
        second.append(step(N_STEPS + 1), {}, {})


def assert_same_bytes(path: Path, edit) -> None:
    found, expected = edit_to_arrays(read_edit(path))[0], edit_to_arrays(edit)[0]
    assert {n: a.tobytes() for n, a in found.items()} == {
        n: a.tobytes() for n, a in expected.items()
    }


def test_a_journal_that_is_gone_is_named(folder):
    for damage in ((folder / "journal.jsonl").unlink, (folder / "journal.jsonl").touch):
        damage()
        for opening in (lambda: read_journal(folder), lambda: open_journal(folder, RUN)):
            with pytest.raises(ValueError, match=r"journal\.jsonl is gone or empty, .* 5 steps"):
                opening()


def test_an_older_journal_is_read_and_the_chain_begins_behind_it(folder, caplog):
    as_older(folder)
    older = b"".join(lines_of(folder))
    assert read_journal(folder).n_unverified == N_STEPS
    run = read_journal(folder).run
    journal = open_journal(folder, run)
    assert "written by an older version, without digests" in caplog.text
    journal.append(step(N_STEPS), *edit_to_arrays(drawn_edit(1)))
    assert b"".join(lines_of(folder)).startswith(older)
    again = read_journal(folder)
    assert (again.n_unverified, len(again.steps)) == (N_STEPS, N_STEPS + 1)
    changed = [line.replace(b"true", b"false") for line in lines_of(folder)[:-1]]
    write_lines(folder, [*changed, lines_of(folder)[-1]])
    for opening in (lambda: read_journal(folder), lambda: open_journal(folder, run)):
        with pytest.raises(ValueError, match="line 6 does not follow the line before it"):
            opening()


def test_an_older_journal_that_lost_a_line_is_named(folder):
    as_older(folder)
    lines = lines_of(folder)
    write_lines(folder, [*lines[:2], *lines[3:]])
    with pytest.raises(ValueError, match="line 3 is step 3, expected 2"):
        read_journal(folder)
    write_lines(folder, lines[1:])
    with pytest.raises(ValueError, match="the line of the unedited model is gone"):
        read_journal(folder)


def test_a_whole_journal_of_an_older_version_is_no_chained_ones(folder, tmp_path):
    """Lines without digests belong to a study that an older version began."""
    older = shutil.copytree(folder, tmp_path / "older")
    as_older(older)
    shutil.copy(older / "journal.jsonl", folder)
    assert_refused(folder, "line 1 has lost its digests")


def test_a_cut_journal_goes_on_in_the_chain(folder):
    whole = lines_of(folder)
    journal = open_journal(folder, RUN).truncate(2)
    for number in range(2, N_STEPS):
        journal.append(step(number), *edit_to_arrays(drawn_edit(number)))
    assert lines_of(folder) == whole


def test_an_undo_is_a_line_of_the_chain(tmp_path):
    folder = filled(tmp_path / "run", 4).folder
    before = lines_of(folder)
    open_journal(folder, RUN).append_undo([1])
    assert lines_of(folder)[:-1] == before
    write_lines(folder, [*before[:-1], lines_of(folder)[-1]])
    with pytest.raises(ValueError, match="line 4 does not follow the line before it"):
        read_journal(folder)


def test_opening_a_journal_digests_each_file_of_a_step_once(tmp_path, monkeypatch):
    """And reading it only the last one: journals have thousands of steps."""
    folder = filled(tmp_path / "run", 9).folder
    digested = []

    def digest(path):
        digested.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(journal_lines, "digest_file", digest)
    assert len(read_journal(folder).steps) == 9
    assert digested == ["000008.safetensors"]
    digested.clear()
    assert len(open_journal(folder, RUN).steps) == 9
    assert digested == [f"00000{number}.safetensors" for number in range(9)]
