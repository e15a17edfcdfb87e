"""Reports of a study whose edits were undone: they say so, and what was measured stays."""

import dataclasses
import json

import numpy as np
import pytest
from journals import CONFIG, STEPS, write_journal

from jaxedit.reports.figures import perplexity_figure
from jaxedit.reports.html import table_cells
from jaxedit.reports.markdown import write_report
from jaxedit.reports.plots import perplexity_plot
from jaxedit.reports.records import edit_steps, outcome, remark, retention_table, summary
from jaxedit.reports.studies import read_studies
from jaxedit.study.journal import Journal, read_journal

HELD = {1: {"1": 0.9}, 6: {"1": 0.75, "5": 0.2, "6": 0.7}}


@pytest.fixture
def journal(tmp_path) -> Journal:
    """A study that kept edits 1, 5 and 6, of which 5 and 6 (which was damaging) were undone."""
    steps = [
        dataclasses.replace(
            step, retention={n: {"probability_new": p} for n, p in HELD[step.step].items()}
        )
        if step.step in HELD
        else step
        for step in STEPS
    ]
    config = CONFIG | {"model": "tiny"}
    write_journal(tmp_path / "run", steps, config).append_undo([5, 6])
    return read_journal(tmp_path / "run")


def test_an_undone_edit_is_no_other_outcome(journal):
    steps = edit_steps(journal)
    assert [outcome(step) for step in steps][4:] == ["undone", "undone", "skipped"]
    assert [outcome(step) for step in steps][:4] == [outcome(step) for step in STEPS[:4]]
    assert remark(steps[4]) == "undone after edit 7"
    assert remark(steps[1]) == "perplexity 173 times"
    assert table_cells(steps[5], single=False)["reason"] == "undone after edit 7"


def test_the_summary_says_what_was_measured_with_it(journal):
    lines = summary(journal, edit_steps(journal))
    assert "5 edits made, 1 kept, 2 rolled back, 1 not possible, 1 skipped" in lines[0]
    assert lines[0].endswith("the screening, 2 undone.")
    assert "After the last kept edit it is 25.5." in lines
    write_journal(journal.folder / "other", STEPS).append_undo([5])
    other = read_journal(journal.folder / "other")
    assert "After the last kept edit it was 60.0." in summary(other, edit_steps(other))
    assert (
        "Edit 5 was undone after edit 7: what was measured after edits 5 to 7 was measured with it "
        "in the model." in lines
    )


def test_report_and_page_say_it(journal):
    text = write_report(journal.folder).read_text(encoding="utf-8")
    page = (journal.folder / "report.html").read_text(encoding="utf-8")
    for written in (text, page):
        assert "Edit 6 was undone after edit 7" in written
    assert sum(line.endswith("| undone |") for line in text.splitlines()) == 2
    assert page.count('<tr data-outcome="undone"') == 2
    assert page.count('<div class="said">undone after edit 7</div>') == 2


def test_curves_and_retention_keep_what_was_measured(journal):
    """The line goes through all that was kept then; the marks say what is undone now."""
    steps = edit_steps(journal)
    traces = [
        (each.name, np.asarray(each.x).tolist()) for each in perplexity_plot(journal, steps).data
    ]
    assert traces[:2] == [("kept", [0, 1, 5, 6]), ("kept", [1])]
    assert ("undone", [5, 6]) in traces
    drawn = perplexity_figure(journal).axes[0].get_lines()
    by_label = {line.get_label(): np.asarray(line.get_xdata()).tolist() for line in drawn}
    assert by_label["undone"] == [5, 6]
    assert [0, 1, 5, 6] in by_label.values()
    edits, evaluated, values = retention_table(journal)
    assert (edits, evaluated) == ([1, 5, 6], [1, 6])
    np.testing.assert_array_equal(values, [[0.9, 0.75], [np.nan, 0.2], [np.nan, 0.7]])


def test_what_held_in_a_model_with_the_edit_is_not_compared(journal, tmp_path):
    """Until the study is run again, which measures the model that it has now."""
    path = journal.folder / "retained.json"
    for steps, expected in (([1, 5, 6], 0), ([1], 1)):
        facts = [{"probability_new": 0.5}] * len(steps)
        path.write_text(json.dumps({"steps": steps, "facts": facts}), encoding="utf-8")
        (study,) = read_studies(tmp_path, ("run",))
        assert len(study.retained) == expected
