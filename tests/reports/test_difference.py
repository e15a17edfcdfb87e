"""What differs between two studies, written by hand; a study does not differ from itself."""

import dataclasses
import math

import pytest
from journals import CONFIG, STEPS, damaging, measured, write_journal

from jaxedit.reports.difference import EDIT_HEADER, diff_studies, edit_row
from jaxedit.study.journal import read_journal


@pytest.fixture
def first(tmp_path):
    return write_journal(tmp_path / "first", STEPS)


def test_a_study_does_not_differ_from_itself(first, tmp_path):
    """Numbers that are not finite and times are no difference."""
    again = [dataclasses.replace(step, time_s={"edit": 9.0}, edit_norm=math.nan) for step in STEPS]
    assert not any(diff_studies(first, write_journal(tmp_path / "again", again)))


def test_settings_that_differ_are_named_by_their_keys(first, tmp_path):
    config = {**CONFIG, "n_facts": 3, "editor": {"method": "memit", "layers": (3, 4)}}
    found = diff_studies(first, write_journal(tmp_path / "second", STEPS, config))
    assert found.settings == [
        ("config.n_facts", 0, 3),
        ("config.editor.method", "c-rome", "memit"),
        ("config.editor.layer", 3, None),
        ("config.editor.layers", None, [3, 4]),
    ]
    assert not any(found[1:])


def test_edits_are_paired_by_their_requests(first, tmp_path):
    """Another order is no difference; what only one was asked for is; twice the same counts."""
    new = measured(9, "Oslo Street", "Rome", 25.0)
    steps = [
        dataclasses.replace(step, step=number)
        for number, step in enumerate([*reversed(STEPS[1:]), STEPS[5], new], 1)
    ]
    found = diff_studies(first, write_journal(tmp_path / "second", steps))
    assert [record.subject for record in found.only_first] == ["The Eiffel Tower"]
    assert [(record.step, record.subject) for record in found.only_second] == [
        (7, "Zürich"),
        (8, "Oslo Street"),
    ]
    assert found.edits == []
    assert ("edits asked for", "7", "8") in found.outcomes


def test_outcomes_of_single_edits_and_of_all(first, tmp_path):
    changed = list(STEPS)
    changed[0] = damaging(1, "The Eiffel Tower", "Rome", 50.0, probability=0.5)
    changed[4] = dataclasses.replace(STEPS[4], metrics={**(STEPS[4].metrics or {})})
    write_journal(tmp_path / "second", changed).append_undo([6])
    second = read_journal(tmp_path / "second")
    found = diff_studies(first, second)
    assert [edit_row(pair, (False, False)) for pair in found.edits] == [
        ["1", "1", "The Eiffel Tower is in → Rome", "kept", "rolled back", "0.988", "0.500"]
        + ["1.02", "2"],
        ["6", "6", "Zürich is in → Oslo", "kept, damaging", "undone", "0.750", "0.750"]
        + ["2.4", "2.4"],
    ]
    assert len(EDIT_HEADER) == 9
    assert found.outcomes == [
        ("edits kept", "2", "1"),
        ("edits kept, damaging", "1", "0"),
        ("edits rolled back", "2", "3"),
        ("edits undone", "0", "1"),
        ("accuracy right after each edit", "60 %", "40 %"),
    ]


def test_perplexities_that_differ(first, tmp_path):
    steps = [measured(1, "The Eiffel Tower", "Rome", 30.0)]
    found = dict(
        (name, pair)
        for name, *pair in diff_studies(
            write_journal(tmp_path / "a", [measured(1, "The Eiffel Tower", "Rome", 25.5)]),
            write_journal(tmp_path / "b", steps),
        ).outcomes
    )
    assert found == {
        "highest ratio of perplexities": ["1.02", "1.2"],
        "perplexity after the last edit kept": ["25.5", "30.0"],
    }


def test_a_study_without_an_edit_cannot_be_compared(first, tmp_path):
    with pytest.raises(ValueError, match="holds no edit yet"):
        diff_studies(first, write_journal(tmp_path / "empty", []))
