"""Journal records as table rows and sentences."""

import dataclasses
import math

import numpy as np
from journals import (
    ERROR,
    MADE,
    NOT_POSSIBLE,
    ROWS,
    SINGLE,
    SKIPPED,
    STEPS,
    as_single,
    damaging,
    measured,
    write_journal,
)

from jaxedit.reports.records import (
    HEADER,
    edit_steps,
    outcome,
    phase_times,
    retention_table,
    summary,
    table_row,
    why_not_made,
)


def test_rows_of_every_kind_of_step(tmp_path):
    steps = edit_steps(write_journal(tmp_path / "run", STEPS))
    assert [table_row(step) for step in steps] == ROWS
    assert all(len(row) == len(HEADER) for row in ROWS)


def test_an_editor_without_a_denominator_has_an_empty_cell():
    step = dataclasses.replace(measured(1, "BP", "Munich", 30.0), optimisation={"loss": 0.1})
    assert table_row(step)[HEADER.index("|u·k|")] == ""


def test_an_edit_whose_perplexity_was_not_due_has_empty_cells():
    step = dataclasses.replace(measured(1, "BP", "Munich", 30.0), perplexity=None)
    assert table_row(step)[2:4] == ["", ""]
    assert table_row(step)[-1] == "kept"


def test_a_batch_is_named_by_its_first_request_with_its_mean_accuracy():
    step = measured(1, "BP", "Munich", 30.0, n_requests=3)
    step = dataclasses.replace(step, metrics={**(step.metrics or {}), "efficacy_accuracy": 2 / 3})
    row = dict(zip(HEADER, table_row(step), strict=True))
    assert row["edit"] == "BP is in → Munich and 2 more"
    assert row["accuracy"] == "67%"


def test_outcomes_of_a_sequence():
    assert [outcome(step) for step in STEPS] == [row[-1] for row in ROWS]


def test_single_edits_are_neither_kept_nor_rolled_back():
    outcomes = [outcome(step, single=True) for step in as_single(STEPS)]
    assert outcomes == [
        "measured",
        "damaging",
        "not edited",
        "damaging",
        "measured",
        "damaging",
        "skipped",
    ]


def test_skipped_edits_are_told_apart_from_errors():
    assert why_not_made(NOT_POSSIBLE) == ERROR
    expected = "skipped by the screening: predicted relative perturbation 0.346"
    assert why_not_made(SKIPPED) == expected
    no_prediction = dataclasses.replace(SKIPPED, predicted_perturbation=None)
    assert why_not_made(no_prediction) == "skipped by the screening"
    assert all(why_not_made(step) is None for step in MADE)


def test_the_summary_of_every_kind_of_step(tmp_path):
    journal = write_journal(tmp_path / "run", STEPS)
    assert summary(journal, edit_steps(journal)) == [
        "c-rome on tiny$x_{$, sequential edits: 5 edits made, 3 kept, 2 rolled back, "
        "1 not possible, 1 skipped by the screening.",
        "The unedited model's perplexity is 25.0; 2 of the edits took it over 1,000 (collapse).",
        "After the last kept edit it is 60.0.",
        "Right after its edit greedy decoding says the new fact in 3 of 5 cases (accuracy).",
        "The most damaging edit: BP is in → Munich, perplexity inf.",
    ]


def test_the_summary_of_single_edits(tmp_path):
    journal = write_journal(tmp_path / "run", as_single(STEPS), SINGLE)
    lines = summary(journal, edit_steps(journal))
    assert "single edits: 5 edits made, 0 kept, 0 rolled back, 1 not possible" in lines[0]
    assert not any("After the last kept edit" in line for line in lines)


def test_the_summary_counts_the_facts_of_batches(tmp_path):
    whole = measured(1, "BP", "Munich", 30.0, n_requests=4)
    half = measured(2, "Bob", "Paris", 30.0, n_requests=4)
    half = dataclasses.replace(half, metrics={**(half.metrics or {}), "efficacy_accuracy": 0.5})
    journal = write_journal(tmp_path / "run", [whole, half])
    lines = summary(journal, edit_steps(journal))
    expected = "Right after its edit greedy decoding says the new fact in 6 of 8 cases (accuracy)."
    assert expected in lines


def test_the_summary_where_nothing_was_skipped_does_not_speak_of_it(tmp_path):
    journal = write_journal(tmp_path / "run", STEPS[:3])
    assert "skipped" not in summary(journal, edit_steps(journal))[0]


def test_seconds_of_each_phase_over_all_edits():
    times_s = phase_times(STEPS)
    assert times_s == dict(edit=2.75, apply=2.5, facts=2.5, generate=2.5, perplexity=2.5)


def test_retention_by_edit_and_evaluation(tmp_path):
    """An edit that came later, or was rolled back, has no value."""
    steps = [
        measured(1, "BP", "Munich", 26.0, retention={"1": {"probability_new": 0.9}}),
        damaging(2, "Bob", "Paris", 500.0),
        measured(3, "Ann", "Rome", 26.0),
        measured(
            4,
            "Tim",
            "Oslo",
            26.0,
            retention={
                "1": {"probability_new": 0.5},
                "3": {"probability_new": math.inf},
                "4": {"probability_new": None},
            },
        ),
    ]
    edits, evaluations, values = retention_table(write_journal(tmp_path / "run", steps))
    assert edits == [1, 3, 4]
    assert evaluations == [1, 4]
    expected = [[0.9, 0.5], [np.nan, np.inf], [np.nan, np.nan]]
    np.testing.assert_array_equal(values, expected)
