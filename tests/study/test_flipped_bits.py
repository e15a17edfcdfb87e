"""Files of a study with flipped bits, or cut short: they say what they said, or are named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from journal_examples import RUN, filled

from jaxedit.edits.edit import edit_to_arrays
from jaxedit.study.journal import open_journal, read_journal

N_STEPS = 5
NAMED = r"run\.json|journal\.jsonl|\d{6}\.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    return filled(tmp_path / "run", N_STEPS).folder


def everything(folder: Path) -> list[tuple]:
    """All that a journal and its steps' files say, to be compared bit for bit."""
    journal = read_journal(folder)
    found: list[tuple] = [(json.dumps(journal.run, sort_keys=True),)]
    for each in journal.steps:
        arrays, metadata = edit_to_arrays(each.read_edit())
        content = {name: np.asarray(array).tobytes() for name, array in arrays.items()}
        found.append((each.record, metadata, content))
    return found


def read_or_error(folder: Path) -> tuple[list[tuple], str | None]:
    try:
        return everything(folder), None
    except ValueError as error:
        return [], str(error)


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl", "steps/000001.safetensors"])
def test_no_flipped_bit_changes_what_is_read(folder, name):
    """Bits of every kind of byte, by chance; a file is named, or nothing is different."""
    whole, path, rng = everything(folder), folder / name, np.random.default_rng(5)
    content, n_named = path.read_bytes(), 0
    for at in [*rng.integers(0, len(content), 150), len(content) - 1, 0]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        found, error = read_or_error(folder)
        n_named += error is not None
        assert found == whole if error is None else re.search(NAMED, error), (at, error)
    assert n_named >= (100 if name == "run.json" else 152)  # white space of run.json says nothing


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl", "steps/000001.safetensors"])
def test_no_cut_changes_what_is_read(folder, name):
    """A journal's end may be gone: it is then one of fewer steps. Anything else is named."""
    whole, path, rng = everything(folder), folder / name, np.random.default_rng(7)
    content = path.read_bytes()
    for length in [*rng.integers(0, len(content), 80), len(content) - 1, 0]:
        path.write_bytes(content[:length])
        found, error = read_or_error(folder)
        if error is not None:
            assert re.search(NAMED, error), error
            continue
        assert found == whole[: len(found)]
        n_lines = content[:length].count(b"\n")
        assert (name == "journal.jsonl" and len(found) == n_lines + 1) or found == whole


def test_flips_in_a_line_of_an_undo_are_named(folder):
    """It is the last line, and no step that could be made again: nothing of it is left out."""
    journal = open_journal(folder, RUN)
    journal.append_undo([1])
    whole = everything(folder)
    before = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    begin = sum(map(len, before[:-1]))
    content = b"".join(before)
    for at in range(begin, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (folder / "journal.jsonl").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"journal\.jsonl, line 6"):
            read_journal(folder)
    (folder / "journal.jsonl").write_bytes(content)
    assert everything(folder) == whole
