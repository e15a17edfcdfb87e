"""What tests of studies share: facts and texts of the golden gpt2, and comparisons of folders."""

import errno
import os
from pathlib import Path

import numpy as np

import jaxedit
from jaxedit import Request
from jaxedit.edits.edit import Edit, read_edit, to_dense
from jaxedit.files import to_json
from jaxedit.study.journal import read_journal

# All of one shape in the tiny gpt2, so that one compilation does. The second takes the perplexity
# over the guard's TIGHT limit, alone or after the first; the others stay under it.
FACTS = [
    {"case_id": 11, "prompt": "{} lives in", "subject": "BP", "target_new": "French"},
    {
        "case_id": 12,
        "prompt": "{} lives in",
        "subject": "Bob",
        "target_new": "Munich",
        "target_true": "London",
    },
    {"case_id": 13, "prompt": "{} is based in", "subject": "Sony", "target_new": "London"},
    {"case_id": 14, "prompt": "{} lives in", "subject": "Ann", "target_new": "Paris"},
]
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    " Once upon a time there was a little girl who lived in the forest.",
    " The NBA and MLB haven't sold lawmakers on a cut so far",
]
TEMPLATES = ("{}", "I am. {}")
TIGHT = 1.02

# Quicker: five facts of one form, and the first of the texts.
NAMES = ("BP", "Bob", "Sony", "Ann", "Tim")
IN_PARIS = [
    {"prompt": "{} lives in", "subject": name, "target_new": "Paris", "target_true": "London"}
    for name in NAMES
]
ONE_TEXT = TEXTS[:1]


def records(folder: Path) -> list[dict]:
    """The journal without what two runs of the same study may differ in."""
    return [
        {k: v for k, v in to_json(step.record.to_dict()).items() if k != "time_s"}
        for step in read_journal(folder).steps
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def edits_of(folder: Path) -> list[Edit]:
    return [read_edit(step.arrays) for step in read_journal(folder).steps[1:]]


def only_kept(folder: Path) -> list[Edit]:
    return [read_edit(step.arrays) for step in read_journal(folder).steps[1:] if step.record.kept]


def perplexities(folder: Path) -> list[float]:
    return [step.record.perplexity["mean"] for step in read_journal(folder).steps]


def request(fact: dict) -> Request:
    return Request(fact["prompt"], fact["subject"], fact["target_new"])


def by_hand(model, editor, asked: list[dict]) -> Edit:
    """The last fact's edit, on the model that has the ones before."""
    state = editor.init(model, None)
    for fact in asked:
        edit, state, _ = editor.edit(model, [request(fact)], state)
        model = jaxedit.apply(model, edit)
    return edit


def assert_same_edit(a: Edit, b: Edit):
    assert [delta[:2] for delta in a.deltas] == [delta[:2] for delta in b.deltas]
    for mine, theirs in zip(a.deltas, b.deltas, strict=True):
        np.testing.assert_array_equal(to_dense(mine), to_dense(theirs))


def assert_same_study(folder: Path, other: Path):
    """Two studies' journals are the same but for times, and their steps' files byte for byte."""
    assert records(folder) == records(other)
    mine, theirs = content(folder), content(other)
    assert sorted(mine) == sorted(theirs)
    differing = [name for name in mine if name != "journal.jsonl" and mine[name] != theirs[name]]
    assert differing == []


def interrupt(step: int):
    """An on_step that interrupts the study right after a step."""

    def on_step(record, total):
        if record.step == step:
            raise KeyboardInterrupt

    return on_step


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
