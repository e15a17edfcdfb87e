"""Perplexities that overflow are shown by their logarithm; no edit collapses a collapsed model."""

import dataclasses
import math

import pytest
from journals import baseline, measured, write_journal

from jaxedit.analyses.damage_prediction import has_collapsed, measured_damage
from jaxedit.analyses.surrogate import LEVELS, levels_over
from jaxedit.reports.figures import perplexity_figure
from jaxedit.reports.formatting import format_perplexity, name_of_top, severity
from jaxedit.reports.markdown import write_report
from jaxedit.reports.records import summary
from jaxedit.study.journal import read_journal


def overflowed(step: int, log_nats: float):
    """The record of an edit whose perplexity is more than a number holds."""
    record = measured(step, "BP", "Rome", math.inf)
    perplexity = record.perplexity | {"n_non_finite": 0, "log_mean_nats": log_nats}
    return dataclasses.replace(record, perplexity=perplexity)


def labels_of(folder) -> list[str]:
    (axes,) = perplexity_figure(read_journal(folder)).axes
    return [text.get_text() for text in axes.texts]


def test_overflowed_perplexities_are_told_apart(tmp_path):
    steps = [measured(1, "A", "b", 50.0), overflowed(2, 1000.0), overflowed(3, 800.0)]
    write_journal(tmp_path / "run", steps)
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "1e434" in text  # 1000 / ln 10
    assert "1e347" in text
    assert "The most damaging edit: BP is in → Rome, perplexity 1e434." in text
    assert "up to 1e434" in labels_of(tmp_path / "run")


def test_without_a_logarithm_they_are_infinite():
    old = {"mean": math.inf}
    assert format_perplexity(old) == "inf"
    assert format_perplexity({"mean": 1e16, "log_mean_nats": math.log(1e16)}).startswith("10,000")
    assert name_of_top([{"mean": 3.0}]) is None
    assert name_of_top([{"mean": 3.0}, old]) == "not finite"
    assert name_of_top([old, {"mean": math.inf, "log_mean_nats": 900.0}]) == "not finite"
    assert severity({"mean": math.inf, "log_mean_nats": 900.0}) < severity(old)


@pytest.mark.parametrize(("unedited", "n_collapsed"), [(25.0, 2), (1000.0, 2), (1001.0, 0)])
def test_what_was_there_before_the_edits_is_no_collapse(tmp_path, unedited, n_collapsed):
    steps = []
    for step, ppl in enumerate((900.0, 5000.0, 1e6), 1):
        record = measured(step, "A", "b", ppl)
        perplexity = record.perplexity | {"ratio": ppl / unedited}
        steps.append(dataclasses.replace(record, perplexity=perplexity))
    write_journal(tmp_path / "run", steps, first=baseline(unedited))
    assert int(measured_damage(steps).is_collapsed.sum()) == n_collapsed
    said = " ".join(summary(read_journal(tmp_path / "run"), steps))
    assert ("took it over" in said) == (n_collapsed > 0)
    assert ("collapse: 1000" in labels_of(tmp_path / "run")) == (n_collapsed > 0)
    assert [has_collapsed(ppl, unedited) for ppl in (900.0, 5000.0)] == [False, n_collapsed > 0]


def test_levels_are_over_the_unedited_perplexity():
    assert levels_over(25.0, None) == LEVELS
    assert levels_over(480.0, None) == tuple(level for level in LEVELS if level > 480.0)
    assert levels_over(25.0, (30.0, 40.0)) == (30.0, 40.0)
    for bad in (20.0, 25.0, math.nan, math.inf, -5.0):
        with pytest.raises(ValueError, match="expected perplexities over the unedited model's"):
            levels_over(25.0, (30.0, bad))
    with pytest.raises(ValueError, match="levels up to 5000"):
        levels_over(6000.0, None)
