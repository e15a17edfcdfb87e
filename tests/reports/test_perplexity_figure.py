"""The perplexity after each edit: what is drawn, against the journal's numbers."""

import dataclasses
import itertools
import math

import matplotlib.image
import numpy as np
import pytest
from drawings import points
from journals import (
    NOT_POSSIBLE,
    SINGLE,
    STEPS,
    as_single,
    baseline,
    damaging,
    write_journal,
)
from matplotlib.colors import to_hex

from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import (
    MOST_NAMED,
    perplexity_figure,
    save_figure,
)

BLUE, RED = "#1b6ca8", "#b3261e"


def marks(axes) -> dict[str, list[list[float]]]:
    """Return what is drawn by the names of the legend."""
    named = {text.get_text() for text in axes.get_legend().get_texts()}
    return {line.get_label(): points(line) for line in axes.lines if line.get_label() in named}


def notes(axes) -> dict[str, tuple[float, float]]:
    """Return the texts in the axes and the points that they name."""
    return {note.get_text(): tuple(map(float, note.xy)) for note in axes.texts}


def draw(folder, steps, *args, curves=()):
    """Return the axes of the perplexity figure of a journal with these steps."""
    (axes,) = perplexity_figure(write_journal(folder / "run", steps, *args), curves).axes
    return axes


@pytest.fixture(scope="module")
def axes(tmp_path_factory):
    """Draw the perplexity of a journal with every kind of step; return the axes."""
    return draw(tmp_path_factory.mktemp("figure"), STEPS)


def test_each_measured_edit_has_a_mark_that_says_what_became_of_it(axes):
    """What is not finite is drawn at ten times the highest of the others."""
    assert marks(axes) == {
        "kept": [[1, 25.5], [5, 26.25]],
        "rolled back": [[2, 4321.5], [4, 43215.0]],
        "kept, damaging": [[6, 60.0]],
    }


def test_marks_are_told_apart_by_shape_and_colour(axes):
    looks = {
        line.get_label(): (line.get_marker(), to_hex(line.get_color()), line.get_linestyle())
        for line in axes.lines
        if line.get_label() in marks(axes)
    }
    assert looks == {
        "kept": ("o", BLUE, "None"),
        "rolled back": ("X", RED, "None"),
        "kept, damaging": ("s", RED, "None"),
    }


def test_a_line_runs_through_the_kept_edits_from_the_unedited_model(axes):
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [points(line) for line in solid] == [[[0, 25.0], [1, 25.5], [5, 26.25], [6, 60.0]]]
    assert solid[0].get_marker() == "None"


def test_levels_are_drawn_and_named(axes):
    levels = {line.get_linestyle(): line.get_ydata()[0] for line in axes.lines if flat(line)}
    assert levels == {"--": 1000, ":": 25.0}
    to_data = axes.transAxes + axes.transData.inverted()
    heights = {
        text: to_data.transform(notes(axes)[text])[1]
        for text in ("collapse: 1000", "unedited: 25.0", "not finite")
    }
    expected = {"collapse: 1000": 1000, "unedited: 25.0": 25, "not finite": 43215}
    assert heights == pytest.approx(expected)


def flat(line) -> bool:
    """Tell whether a line crosses the axes at one height."""
    return np.asarray(line.get_xdata()).tolist() == [0, 1] and len(set(line.get_ydata())) == 1


def test_damaging_edits_are_named_at_their_marks(axes):
    named = {text: at for text, at in notes(axes).items() if "→" in text}
    assert named == {
        "a|b $x_{$ [link](u) → 5|\\6": (2, 4321.5),
        "BP → Munich": (4, 43215.0),
        "Zürich → Oslo": (6, 60.0),
    }


def test_axes_of_the_perplexity(axes):
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert axes.get_xlabel() == "edit"
    assert axes.get_ylabel() == "perplexity (mean over texts)"
    assert axes.get_title() == "c-rome on tiny$x_{$: perplexity after each edit"
    bottom, top = axes.get_ylim()
    assert 1 < bottom < 25
    assert 43215 < top < 1e6
    left, right = axes.get_xlim()
    assert left < 0
    assert 7 < right < 8  # as far as the study goes, though its last edit was skipped


def test_single_edits_have_marks_and_no_line(tmp_path):
    axes = draw(tmp_path, as_single(STEPS), SINGLE)
    assert marks(axes) == {
        "measured": [[1, 25.5], [5, 26.25]],
        "damaging": [[2, 4321.5], [4, 43215.0], [6, 60.0]],
    }
    assert not [line for line in axes.lines if line.get_linestyle() == "-"]
    assert axes.get_title().endswith("perplexity after each edit of the unedited model")


def test_a_study_without_damage_has_one_kind_of_mark(tmp_path):
    axes = draw(tmp_path, [STEPS[0], STEPS[4]])
    assert list(marks(axes)) == ["kept"]
    assert not [text for text in notes(axes) if "→" in text or text == "not finite"]


def test_a_study_of_failures_shows_the_levels_alone(tmp_path):
    axes = draw(tmp_path, [dataclasses.replace(NOT_POSSIBLE, step=1)])
    assert all(flat(line) for line in axes.lines)
    assert len(axes.lines) == 2
    assert axes.get_legend() is None


def test_a_model_that_was_broken_before_any_edit(tmp_path):
    axes = draw(tmp_path, STEPS[:1], {**SINGLE, "mode": "sequential"}, baseline(math.inf))
    assert marks(axes) == {"kept": [[1, 25.5]]}
    (kept,) = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert points(kept) == [[0, 1e4], [1, 25.5]]
    assert {"unedited: inf", "not finite"} <= set(notes(axes))


def test_curves_of_others_are_drawn_as_far_as_the_study_goes(tmp_path):
    curves = [
        Curve("low", [0, 2, 4, 6, 8], [70.0, 71.0, 72.0, 73.0, 74.0]),
        Curve("high", [0, 6, 8], [70.0, 2e6, 3e7]),
        Curve("later", [20, 30], [70.0, 71.0]),
    ]
    axes = draw(tmp_path, STEPS, curves=curves)
    drawn = {line.get_label(): line for line in axes.lines}
    assert points(drawn["low"]) == [[0, 70], [2, 71], [4, 72], [6, 73]]
    assert points(drawn["high"]) == [[0, 70], [6, 2e6]]
    assert drawn["low"].get_linestyle() != drawn["high"].get_linestyle()
    assert "later" not in drawn
    assert axes.get_ylim()[1] >= 2e6
    assert {"low", "high"} <= set(notes(axes))
    assert not {"low", "high"} & set(marks(axes))  # named where they end, not in the legend


def test_of_many_damaging_edits_the_worst_are_named(tmp_path):
    rng = np.random.default_rng(0)
    steps = [
        damaging(i, f"subject {i}", "x", 100 * math.exp(rng.uniform(0, 9))) for i in range(1, 29)
    ]
    axes = draw(tmp_path, steps)
    named = [text for text in notes(axes) if "→" in text]
    assert len(named) == MOST_NAMED
    worst = max(steps, key=lambda step: step.perplexity["mean"])
    assert named[0] == f"{worst.subject} → x"
    axes.figure.draw_without_rendering()
    boxes = [note.get_window_extent() for note in axes.texts if note.get_text() in named]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_figure_is_written_as_png_and_pdf(tmp_path, axes):
    save_figure(axes.figure, tmp_path / "new" / "perplexity")
    image = matplotlib.image.imread(tmp_path / "new" / "perplexity.png")[..., :3]
    assert image.shape == (720, 1400, 3)
    assert 0.8 < image.mean() < 1  # mostly paper
    for colour in (BLUE, RED):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(image - wanted).max(axis=-1) < 0.02).sum() > 100
    assert (tmp_path / "new" / "perplexity.pdf").read_bytes().startswith(b"%PDF-")
