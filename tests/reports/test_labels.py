"""Labels of figures: they do not overlap, and move as little as possible."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Text
from scipy import optimize

from jaxedit.reports.figures import new_figure
from jaxedit.reports.labels import (
    EndLabel,
    PointLabel,
    label_line_ends,
    label_points,
    spread_apart,
)


def overlaps(axes) -> list[tuple[str, str]]:
    """Return the pairs of texts of the axes that overlap."""
    axes.figure.draw_without_rendering()
    # Of the text alone: an annotation's own extent holds its leader as well.
    boxes = [(note.get_text(), Text.get_window_extent(note)) for note in axes.texts]
    return [(a, b) for (a, p), (b, q) in itertools.combinations(boxes, 2) if p.overlaps(q)]


def test_places_that_are_far_apart_stay():
    assert spread_apart([0.9, 0.1, 0.5], 0.2) == pytest.approx([0.9, 0.1, 0.5])


def test_no_place_needs_no_other():
    assert spread_apart([], 0.1) == []
    assert spread_apart([0.3], 0.1) == pytest.approx([0.3])


@pytest.mark.parametrize("seed", range(3))
def test_places_move_as_little_as_possible(seed):
    """Against a general solver of the same least-squares problem."""
    rng = np.random.default_rng(seed)
    places, step = np.sort(rng.uniform(0, 0.4, 8)), 0.1
    moved = np.array(spread_apart(places.tolist(), step))
    found = optimize.minimize(
        lambda z: np.sum((z - places) ** 2),
        np.linspace(0, 1, 8),
        bounds=[(0, 1)] * 8,
        constraints={"type": "ineq", "fun": lambda z: np.diff(z) - step},
        tol=1e-12,
    )
    np.testing.assert_allclose(moved, found.x, atol=1e-5)
    assert np.diff(moved).min() > step - 1e-9


def test_the_order_of_the_places_stays():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 1, 12)
    moved = spread_apart(places.tolist(), 0.07)
    np.testing.assert_array_equal(np.argsort(moved), np.argsort(places))


def test_more_places_than_there_is_room_for_are_spread_evenly():
    moved = spread_apart([0.5] * 21, 0.2)
    np.testing.assert_allclose(moved, np.linspace(0, 1, 21), atol=1e-9)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_of_lines_that_end_close_together_do_not_overlap(scale):
    axes = new_figure(7.0, 4.0).subplots()
    axes.set_yscale(scale)
    axes.set_ylim(100, 1e6)
    axes.set_xlim(0, 60)
    labels = [EndLabel(f"line {i}", 60, 200.0 + i, "black") for i in range(15)]
    label_line_ends(axes, labels)
    assert len(axes.texts) == 15
    assert overlaps(axes) == []
    heights = [note.xyann[1] for note in axes.texts]
    assert 0 <= min(heights) < max(heights) <= 1


def test_a_leader_begins_where_its_line_ends():
    axes = new_figure(7.0, 4.0).subplots()
    axes.set_xlim(0, 10)
    axes.set_yscale("log")
    axes.set_ylim(1, 100)
    label_line_ends(axes, [EndLabel("a", 5, 10.0, "red"), EndLabel("b", None, 1.0, "blue")])
    assert [note.get_text() for note in axes.texts] == ["a", "b"]
    np.testing.assert_allclose([note.xy for note in axes.texts], [(0.5, 0.5), (1.0, 0.0)])
    assert all(note.xyann[0] > 1 for note in axes.texts)  # right of the axes
    assert [note.get_color() for note in axes.texts] == ["red", "blue"]
    # The leader of the line that ends early might be taken for the line itself.
    assert [note.arrow_patch.get_linestyle() for note in axes.texts] == [":", "solid"]


def test_names_of_points_cover_neither_each_other_nor_a_mark():
    rng = np.random.default_rng(1)
    marks = rng.uniform(0, 1, (40, 2))
    axes = new_figure(7.0, 4.0).subplots()
    axes.plot(*marks.T, "o")
    labels = [PointLabel(f"point number {i}", x, y) for i, (x, y) in enumerate(marks)]
    label_points(axes, labels, marks)
    assert 5 < len(axes.texts) < 40
    assert overlaps(axes) == []
    places = axes.transData.transform(marks)
    for note in axes.texts:
        box = note.get_window_extent()
        assert not box.count_contains(places)
        assert axes.bbox.count_contains(box.corners()) == 4


def test_the_most_important_points_are_named_and_no_more_than_asked_for():
    marks = np.column_stack([np.arange(9.0), np.arange(9.0)])
    axes = new_figure(7.0, 4.0).subplots()
    axes.plot(*marks.T, "o")
    label_points(axes, [PointLabel(str(i), i, i) for i in (4, 8, 2, 6)], marks, most=3)
    assert [note.get_text() for note in axes.texts] == ["4", "8", "2"]
