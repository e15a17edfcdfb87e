"""Perplexity against tasks, and seconds against sizes: what is drawn, against the numbers given."""

import itertools
import math

import numpy as np
import pytest
from drawings import points
from scipy import stats

from jaxedit.reports.comparison_figures import scaling_figure, surrogate_figure


@pytest.fixture(scope="module")
def models():
    """Make the unedited model and eleven edited ones, with a task that has no accuracy."""
    rng = np.random.default_rng(0)
    rows = []
    for i, ppl in enumerate(np.geomspace(100, 5000, 12)):
        tasks = {
            "piqa": {"acc": 0.9 - 0.05 * math.log(ppl) + rng.normal(0, 0.02), "acc_stderr": 0.01},
            "free": {"em": 0.1},
            "copa": {"acc": rng.uniform(), "acc_stderr": rng.uniform(0, 0.1)},
        }
        pooled = ppl * rng.uniform(0.1, 0.9)
        row = {"level": ppl if i else None, "perplexity": ppl, "pooled": pooled, "tasks": tasks}
        rows.append(row)
    return rows


def test_accuracy_is_drawn_against_both_forms_of_perplexity(models):
    figure = surrogate_figure(models)
    panels = itertools.product(("perplexity", "pooled"), ("piqa", "copa"))
    for axes, (form, task) in zip(figure.axes, panels, strict=True):
        x = np.array([row[form] for row in models])
        y = np.array([row["tasks"][task]["acc"] for row in models])
        stderr = np.array([row["tasks"][task]["acc_stderr"] for row in models])
        drawn = {container.get_label(): container for container in axes.containers}
        assert drawn.keys() == {"unedited", "edited"}
        for name, chosen in (("unedited", slice(1)), ("edited", slice(1, None))):
            line, _, (bars,) = drawn[name].lines
            np.testing.assert_allclose(points(line), np.column_stack([x, y])[chosen])
            spans = [segment[:, 1] for segment in bars.get_segments()]
            np.testing.assert_allclose(spans, np.column_stack([y - stderr, y + stderr])[chosen])
            at = [segment[:, 0] for segment in bars.get_segments()]
            np.testing.assert_allclose(at, np.column_stack([x, x])[chosen])
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
        assert axes.get_ylabel() == f"{task}: acc"
        named = {"perplexity": "perplexity (mean over texts)", "pooled": "perplexity (pooled)"}
        assert axes.get_xlabel() == named[form]
        rho = stats.spearmanr(x, y)[0]
        assert axes.get_title().startswith(f"Spearman's ρ = {rho:.2f} (")
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["unedited", "edited"]


def test_the_unedited_model_is_told_apart(models):
    unedited, edited = surrogate_figure(models).axes[0].containers
    assert unedited.lines[0].get_marker() != edited.lines[0].get_marker()
    assert unedited.lines[0].get_color() != edited.lines[0].get_color()


def test_three_models_are_drawn_without_a_correlation(models):
    axes = surrogate_figure(models[:3]).axes[0]
    assert axes.get_title() == ""
    assert sum(len(container.lines[0].get_xdata()) for container in axes.containers) == 3


def test_a_metric_that_no_task_has_is_refused(models):
    with pytest.raises(ValueError, match="none of the tasks piqa, free, copa has the metric 'f1'"):
        surrogate_figure(models, metric="f1")


SCALING = {
    "edits": [(1, 0.8), (10, 0.81), (100, 0.85), (1000, 1.2)],
    "tokens": [(1000, 0.1), (4000, 0.42), (16000, 1.7), (64000, 6.9)],
}


def test_seconds_are_drawn_against_edits_and_tokens():
    by_edits, by_tokens = scaling_figure(SCALING).axes
    for axes, name in ((by_edits, "edits"), (by_tokens, "tokens")):
        (line,) = axes.lines
        np.testing.assert_allclose(points(line), SCALING[name])
        assert line.get_marker() == "o"
        low, high = axes.get_ylim()
        assert low == 0
        assert high > max(time_s for _, time_s in SCALING[name])
        assert axes.get_yscale() == "linear"
    assert (by_edits.get_xscale(), by_tokens.get_xscale()) == ("log", "linear")
    assert by_edits.get_xlabel() == "edits made before it"
    assert by_edits.get_ylabel() == "seconds per edit"
    assert by_tokens.get_xlabel() == "tokens"
    assert by_tokens.get_ylabel() == "seconds per perplexity"
    assert by_tokens.get_xlim()[0] == 0


@pytest.mark.parametrize("panel", [0, 1])
def test_numbers_of_the_scaling_do_not_overlap(panel):
    axes = scaling_figure(SCALING).axes[panel]
    axes.figure.draw_without_rendering()
    low, high = axes.get_xlim()
    labels = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    boxes = [label.get_window_extent() for tick, label in labels if low <= tick <= high]
    assert len(boxes) >= 3
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
