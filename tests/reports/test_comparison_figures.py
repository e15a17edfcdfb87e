"""Several studies beside each other: what is drawn, against the journals' numbers."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from drawings import points
from journals import NOT_POSSIBLE, baseline, fact_metrics, measured, write_journal
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from jaxedit.reports.comparison_figures import (
    COLORS,
    comparison_figure,
)
from jaxedit.reports.curves import Curve
from jaxedit.reports.studies import FinishedStudy

UNEDITED = 167.3
METHODS = (
    "alphaedit",
    "betaedit",
    "c-rome",
    "emmet",
    "encore",
    "ft-l",
    "memit",
    "memit-rect",
    "memit-sequential",
    "nse",
    "pmet",
    "prune",
    "rome",
)
CURVES = (
    Curve("hard, published", [0, 4, 60], [68.0, 1e5, 2e5]),
    Curve("normal", [0, 60], [68, 69]),
)


def study(folder, name: str, perplexities: dict[int, float]) -> FinishedStudy:
    """Write a study of 60 edits whose perplexity was measured after some."""
    steps = []
    for step in range(1, max(perplexities) + 1):
        record = measured(step, "a", "b", perplexities.get(step, 25.0))
        due = record if step in perplexities else dataclasses.replace(record, perplexity=None)
        steps.append(due)
    journal = write_journal(folder / name, steps, first=baseline(UNEDITED))
    return FinishedStudy(name, journal, [])


def lines(axes) -> dict[str, list[list[float]]]:
    """Return the points of each line that has a name."""
    return {line.get_label(): points(line) for line in axes.lines if line.get_label()[0] != "_"}


@pytest.fixture(scope="module")
def perplexities():
    """Perplexities of each method every ten edits: most stay close, some collapse."""
    growths = [0.05, 0.06, 0.07, 0.08, 0.3, 5, 0.02, 0.04, 0.01, 2, 3, 8, 20]
    return {
        name: {step: UNEDITED * math.exp(growth * (step / 60) ** 1.5) for step in range(10, 61, 10)}
        for name, growth in zip(METHODS, growths, strict=True)
    }


@pytest.fixture(scope="module")
def studies(perplexities, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    return [study(folder, name, values) for name, values in perplexities.items()]


@pytest.fixture(scope="module")
def axes(studies):
    """Draw thirteen studies and two published curves; return the axes."""
    (axes,) = comparison_figure(studies, CURVES).axes
    return axes


def test_a_line_a_study_from_the_unedited_model_on(axes, perplexities):
    drawn = lines(axes)
    for name, values in perplexities.items():
        np.testing.assert_allclose(drawn[name], [(0, UNEDITED), *values.items()])
    assert drawn.keys() == {*METHODS, *(curve.name for curve in CURVES)}
    for curve in CURVES:
        expected = list(zip(curve.edits, curve.perplexity, strict=True))
        np.testing.assert_allclose(drawn[curve.name], expected)


def test_axes_of_the_comparison(axes):
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert axes.get_xlabel() == "edits"
    assert axes.get_ylabel() == "perplexity (mean over texts)"
    levels = [line for line in axes.lines if line.get_label()[0] == "_"]
    assert [line.get_ydata()[0] for line in levels] == [1000]


def test_studies_of_very_different_lengths_are_drawn_on_a_logarithmic_axis(tmp_path):
    short, long = {20: 170.0, 40: 175.0}, {100: 168.0, 200: 300.0}
    (axes,) = comparison_figure(
        [study(tmp_path, "short", short), study(tmp_path, "long", long)]
    ).axes
    assert axes.get_xscale() == "symlog"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "20", "50", "100", "200"]
    np.testing.assert_allclose(lines(axes)["long"], [(0, UNEDITED), *long.items()])


def test_each_line_is_named_in_its_colour_where_it_ends(axes):
    colors = {line.get_label(): to_rgb(line.get_color()) for line in axes.lines}
    ends = lines(axes)
    names = {note.get_text(): note for note in axes.texts}
    assert names.keys() == {*ends, "collapse: 1000"}
    to_data = axes.transAxes + axes.transData.inverted()
    for name, line in ends.items():
        assert to_rgb(names[name].get_color()) == colors[name]
        np.testing.assert_allclose(to_data.transform(names[name].xy), line[-1], rtol=1e-6)
    np.testing.assert_allclose(to_data.transform(names["collapse: 1000"].xy)[1], 1000)


def test_names_lie_right_of_the_axes_and_do_not_overlap(axes):
    axes.figure.draw_without_rendering()
    boxes = {note.get_text(): Text.get_window_extent(note) for note in axes.texts}
    assert not [
        pair for pair in itertools.combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])
    ]
    for box in boxes.values():
        assert box.x0 > axes.bbox.x1
        assert axes.figure.bbox.count_contains(box.corners()) == 4
    # The order of the names from the bottom is that of the lines' ends.
    ends = {name: line[-1][1] for name, line in lines(axes).items()} | {"collapse: 1000": 1000}
    assert sorted(ends, key=ends.__getitem__) == sorted(boxes, key=lambda name: boxes[name].y0)


def luminance_and_lab(color) -> tuple[float, np.ndarray]:
    """Compute relative luminance (WCAG) and CIELAB of an sRGB colour."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = to_xyz @ linear / [0.9505, 1.0, 1.089]
    f_x, f_y, f_z = (np.cbrt(t) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return y, np.array([116 * f_y - 16, 500 * (f_x - f_y), 200 * (f_y - f_z)])


def test_colours_are_distinct_and_legible_on_white(axes):
    assert len(set(COLORS)) == len(COLORS) >= 13
    found = [luminance_and_lab(color) for color in COLORS]
    assert min(np.linalg.norm(a - b) for (_, a), (_, b) in itertools.combinations(found, 2)) > 26
    assert all(1.05 / (luminance + 0.05) >= 2.99 for luminance, _ in found)
    grey = luminance_and_lab("0.55")[1]  # of published curves
    assert min(np.linalg.norm(lab - grey) for _, lab in found) > 26


def test_no_two_studies_look_alike(axes):
    drawn = [line for line in axes.lines if line.get_label() in METHODS]
    assert len({line.get_color() for line in drawn}) == 13
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn}) == 13  # in greyscale


def test_what_is_not_finite_is_drawn_at_the_top(studies, tmp_path):
    broken = study(tmp_path, "broken", {10: 500.0, 20: math.inf, 30: math.inf})
    (axes,) = comparison_figure([*studies[:3], broken]).axes
    assert lines(axes)["broken"] == [[0, UNEDITED], [10, 500], [20, 1e4], [30, 1e4]]
    assert "not finite" in {note.get_text() for note in axes.texts}


def test_a_calm_comparison_has_numbers_at_its_axis_and_no_collapse(studies):
    (axes,) = comparison_figure(studies[:3]).axes
    assert [note.get_text() for note in axes.texts] == list(METHODS[:3])
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    ticks = [y for y in axes.get_yticks() if low <= y <= high]
    assert len(ticks) >= 3
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert {f"{tick:g}" for tick in ticks} <= set(shown)


def test_studies_in_which_nothing_could_be_edited(tmp_path):
    failed = dataclasses.replace(NOT_POSSIBLE, step=1)
    journal = write_journal(tmp_path / "a", [failed, dataclasses.replace(failed, step=2)])
    (axes,) = comparison_figure([FinishedStudy("a", journal, [])], CURVES).axes
    assert lines(axes)["a"] == [[0, 25.0]]


ONE_EDIT = {
    "rome@0.1": (1.05, 0.5),
    "rome@0.5": (1.4, True),
    "memit@0.1": (1.02, False),
    "memit@0.5": (1.1, 0.75),
}


def one_edit(folder, name: str, ratio: float, efficacy: float | None) -> FinishedStudy:
    """Write a study of one edit."""
    metrics = fact_metrics(0.9) | {"efficacy_success": efficacy}
    record = dataclasses.replace(measured(1, "a", "b", 25.0 * ratio), metrics=metrics)
    return FinishedStudy(name, write_journal(folder / name, [record]), [])


def test_studies_of_one_edit_are_weighed_against_each_other(tmp_path):
    """Efficacy against the perplexity ratio, a line a method, every point with its value."""
    studies = [one_edit(tmp_path, name, *values) for name, values in ONE_EDIT.items()]
    (axes,) = comparison_figure(studies).axes
    drawn = lines(axes)
    assert drawn.keys() == {"rome", "memit"}
    np.testing.assert_allclose(drawn["rome"], [(1.05, 50), (1.4, 100)])
    np.testing.assert_allclose(drawn["memit"], [(1.02, 0), (1.1, 75)])
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert axes.get_xlabel() == "perplexity of the edited model / of the unedited model"
    assert axes.get_ylabel() == "efficacy (%)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rome", "memit"]
    named = [(note.get_text(), *note.xy) for note in axes.texts]
    expected = [
        (name.partition("@")[2], ratio, 100 * efficacy)
        for name, (ratio, efficacy) in ONE_EDIT.items()
    ]
    assert [text for text, *_ in named] == [text for text, *_ in expected]
    np.testing.assert_allclose([at for _, *at in named], [at for _, *at in expected])


def test_a_collapse_makes_the_ratio_logarithmic(tmp_path):
    studies = [one_edit(tmp_path, "a@1", 1.1, 0.5), one_edit(tmp_path, "a@2", 5000.0, 1.0)]
    (axes,) = comparison_figure(studies).axes
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(lines(axes)["a"], [(1.1, 50), (5000, 100)])


def test_facts_without_a_true_answer_have_no_efficacy_to_draw(tmp_path):
    studies = [one_edit(tmp_path, "a@1", 1.1, None), one_edit(tmp_path, "a@2", 1.2, 1.0)]
    (axes,) = comparison_figure(studies).axes
    assert np.isnan(lines(axes)["a"][0][1])
    assert [note.get_text() for note in axes.texts] == ["2"]
