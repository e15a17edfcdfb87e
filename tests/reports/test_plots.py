"""The page's figures: the data of their traces, against the journal's numbers."""

import dataclasses
import math

import numpy as np
import pytest
from journals import SINGLE, STEPS, as_single, measured, write_journal

from jaxedit.reports.curves import Curve
from jaxedit.reports.plots import (
    DAMAGING,
    HARMLESS,
    damage_prediction_plot,
    perplexity_plot,
    retention_plot,
    signed_log,
    signed_log_ticks,
    time_plot,
)
from jaxedit.reports.records import edit_steps


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """Write a journal with every kind of step, and two evaluations of retention."""
    held = {1: {"1": 0.99}, 5: {"1": 0.8, "5": 0.25}}
    steps = [
        dataclasses.replace(
            step,
            retention={edit: {"probability_new": value} for edit, value in held[step.step].items()},
        )
        if step.step in held
        else step
        for step in STEPS
    ]
    return write_journal(tmp_path_factory.mktemp("plots") / "run", steps)


def points(trace) -> list[tuple[float, float]]:
    """Return the points of a trace."""
    return list(zip(trace.x, trace.y, strict=True))


def by_name(figure, mode: str) -> dict:
    """Return the traces of a mode by their names."""
    return {trace.name: trace for trace in figure.data if trace.mode == mode}


def test_marks_by_outcome_where_what_is_not_finite_is_at_the_top(journal):
    marks = by_name(perplexity_plot(journal, edit_steps(journal)), "markers")
    assert {name: points(trace) for name, trace in marks.items()} == {
        "kept": [(1, 25.5), (5, 26.25)],
        "kept, damaging": [(6, 60.0)],
        "rolled back": [(2, 4321.5), (4, 43215.0)],
    }
    looks = {name: (trace.marker.color, trace.marker.symbol) for name, trace in marks.items()}
    assert looks == {
        "kept": (HARMLESS, "circle"),
        "kept, damaging": (DAMAGING, "square"),
        "rolled back": (DAMAGING, "x"),
    }


def test_marks_of_single_edits(tmp_path):
    journal = write_journal(tmp_path / "run", as_single(STEPS), SINGLE)
    figure = perplexity_plot(journal, edit_steps(journal))
    assert {name: points(trace) for name, trace in by_name(figure, "markers").items()} == {
        "measured": [(1, 25.5), (5, 26.25)],
        "damaging": [(2, 4321.5), (4, 43215.0), (6, 60.0)],
    }
    assert not by_name(figure, "lines")


def test_a_mark_says_what_it_is_and_no_fact_is_markup(journal):
    script = dataclasses.replace(STEPS[1], subject="<b>x</b>", continuation="<script>")
    steps = [STEPS[0], script, STEPS[3]]
    trace = by_name(perplexity_plot(journal, steps), "markers")["rolled back"]
    assert [list(about) for about in trace.customdata] == [
        ["&lt;b&gt;x&lt;/b&gt; is in → 5|\\6", "4,322", "&lt;script&gt;"],
        ["BP is in → Munich", "inf", " Rome."],
    ]


def test_lines_of_the_kept_edits_and_of_others_curves(journal):
    curves = [Curve("low", [0, 4, 6, 8], [70.0, 71.0, 72.0, 73.0]), Curve("b", [0, 6], [1.0, 2e6])]
    lines = by_name(perplexity_plot(journal, edit_steps(journal), curves), "lines")
    assert {name: points(trace) for name, trace in lines.items()} == {
        "kept": [(0, 25.0), (1, 25.5), (5, 26.25), (6, 60.0)],
        "low": [(0, 70.0), (4, 71.0), (6, 72.0)],  # as far as the study goes
        "b": [(0, 1.0), (6, 2e6)],
    }
    assert lines["low"].line.dash != lines["b"].line.dash


def test_axes_and_levels_of_the_perplexity(journal):
    layout = perplexity_plot(journal, edit_steps(journal)).layout
    assert layout.yaxis.type == "log"
    assert layout.xaxis.type in (None, "linear")
    assert layout.yaxis.title.text == "perplexity (mean over texts)"
    assert layout.xaxis.title.text == "edit"
    low, high = layout.yaxis.range
    assert low < math.log10(25)
    assert math.log10(43215) < high < 6
    assert sorted(shape.y0 for shape in layout.shapes) == [25.0, 1000, 43215.0]
    heights = {note.text: 10**note.y for note in layout.annotations}
    expected = {"unedited: 25.0": 25, "collapse: 1000": 1000, "not finite": 43215}
    assert heights == pytest.approx(expected)


@pytest.fixture(scope="module")
def predicted():
    """Single edits with all predictors, some of them damaging."""
    rng = np.random.default_rng(0)
    steps = []
    for step in range(1, 21):
        perturbation = float(np.exp(rng.normal(-3, 1.5)))
        fields = dict(
            kept=False,
            predicted_perturbation=1.2 * perturbation + rng.uniform(0, 0.1),
            relative_perturbation=perturbation,
            optimisation={"denominator": rng.uniform(1, 10)},
        )
        steps.append(measured(step, f"<i>{step}", "b", 25 * math.exp(4 * perturbation), **fields))
    return steps


def test_damage_against_each_predictor(predicted):
    figure = damage_prediction_plot(predicted, single=True)
    values = [
        [step.predicted_perturbation for step in predicted],
        [step.relative_perturbation for step in predicted],
        [1 / step.optimisation["denominator"] for step in predicted],
    ]
    change = [math.log(step.perplexity["mean"] / 25) for step in predicted]
    colors = [DAMAGING if math.exp(nats) > 1.1 else HARMLESS for nats in change]
    assert set(colors) == {DAMAGING, HARMLESS}
    for trace, value in zip(figure.data, values, strict=True):
        np.testing.assert_allclose(trace.x, value)
        np.testing.assert_allclose(trace.y, np.arcsinh(np.array(change) / 0.01))
        assert list(trace.marker.color) == colors
        name, x, y = trace.customdata[0]  # what pointing at a mark says
        assert name == "&lt;i&gt;1 is in → b"
        assert (float(x), float(y)) == pytest.approx((value[0], change[0]))
    layout = figure.layout
    axes = (layout.xaxis, layout.xaxis2, layout.xaxis3)
    expected = ["predicted before the edit", "relative perturbation", "1 / |u·k|"]
    assert [axis.title.text for axis in axes] == expected
    assert {axis.type for axis in axes} == {"log"}
    assert layout.yaxis.type in (None, "linear")
    for place, text in zip(layout.yaxis.tickvals, layout.yaxis.ticktext, strict=True):
        assert place == pytest.approx(math.asinh(float(text) / 0.01))
    assert max(map(float, layout.yaxis.ticktext)) >= max(change) / 10
    assert layout.yaxis.title.text == "change of the mean loss (nats a token)"


def test_harmless_edits_have_room_beside_ruinous_ones(predicted):
    """A change predicted with its sign is drawn from -0.01 to 0.01 as wide as each power of ten."""
    changes = [-0.02, -0.003, 0.004, *np.linspace(0.01, 0.5, 16), 70.0]
    steps = [
        dataclasses.replace(
            step,
            predicted_change={
                "mean_nats": change,
                "first_nats": change / 2,
                "second_nats": change / 2,
                "log_ratio_nats": change,
            },
        )
        for step, change in zip(predicted, changes, strict=True)
    ]
    figure = damage_prediction_plot(steps, single=True)
    np.testing.assert_allclose(figure.data[-1].x, np.arcsinh(np.array(changes) / 0.01))
    axis = figure.layout.xaxis4
    assert axis.title.text == "predicted change of the loss"
    assert axis.type in (None, "linear")


@pytest.mark.parametrize(
    ("largest", "ticks"),
    [
        (0.0, "-0.01 0 0.01"),
        (0.01, "-0.01 0 0.01"),
        (0.5, "-0.1 -0.01 0 0.01 0.1"),
        (8.0, "-1 -0.1 -0.01 0 0.01 0.1 1"),
        (70.0, "-10 -1 -0.1 -0.01 0 0.01 0.1 1 10"),
        (math.inf, "-0.01 0 0.01"),
    ],
)
def test_ticks_go_as_far_as_the_values(largest, ticks):
    assert signed_log_ticks(np.array([0.0, -largest]))["ticktext"] == ticks.split()
    placed = signed_log(np.array([0.02, math.inf, math.nan]))
    assert placed[0] == pytest.approx(math.asinh(2.0))
    assert np.isnan(placed[1:]).all()


def test_without_a_predictor_there_is_no_plot(predicted):
    assert damage_prediction_plot(predicted[:2], single=True) is None


def test_retention_is_a_map_of_fact_and_time(journal):
    (trace,) = retention_plot(journal, edit_steps(journal)).data
    expected = [[0.99, 0.8], [np.nan, 0.25], [np.nan, np.nan]]
    np.testing.assert_array_equal(np.array(trace.z, float), expected)
    assert list(trace.x) == ["1", "5"]
    names = [
        "1: The Eiffel Tower is in → Rome",
        "5: 東京 [Corp] is in → Paris",
        "6: Zürich is in → Oslo",
    ]
    assert list(trace.y) == names
    assert (trace.zmin, trace.zmax) == (0, 1)
    layout = retention_plot(journal, edit_steps(journal)).layout
    assert layout.yaxis.autorange == "reversed"
    assert layout.xaxis.title.text == "edits made"


def test_one_evaluation_is_no_map(tmp_path):
    steps = [measured(1, "a", "b", 26.0, retention={"1": {"probability_new": 0.5}})]
    assert retention_plot(write_journal(tmp_path / "run", steps), steps) is None


def test_seconds_of_each_phase():
    (trace,) = time_plot(STEPS).data
    seconds = dict(zip(trace.y, trace.x, strict=True))
    assert seconds == dict(edit=2.75, apply=2.5, facts=2.5, generate=2.5, perplexity=2.5)
    assert trace.orientation == "h"
