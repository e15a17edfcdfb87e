"""The figures of one study: what is drawn, against the journal's numbers."""

import dataclasses
import itertools
import math

import matplotlib.image
import numpy as np
import pytest
from journals import (
    NOT_POSSIBLE,
    SINGLE,
    STEPS,
    as_single,
    baseline,
    damaging,
    measured,
    write_journal,
)
from matplotlib.colors import to_hex
from scipy import stats

from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import (
    MOST_NAMED,
    damage_prediction_figure,
    perplexity_figure,
    retention_figure,
    save_figure,
)

BLUE, RED = "#1b6ca8", "#b3261e"


def points(line) -> list[list[float]]:
    """Return the points of a line."""
    return np.transpose(line.get_data()).tolist()


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
    """The axes of the perplexity figure of a journal with every kind of step."""
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
    assert axes.get_title() == "C-ROME on tiny$x_{$: perplexity after each edit"
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


@pytest.fixture(scope="module")
def predicted():
    """Single edits whose damage follows their perturbation; one made the loss infinite."""
    rng = np.random.default_rng(0)
    steps = []
    for step in range(1, 31):
        perturbation = float(np.exp(rng.normal(-3, 1.5)))
        change = 8 * perturbation * float(np.exp(rng.normal(0, 0.8)))
        ppl = 25 * math.exp(change) if step < 30 else math.inf
        fields = dict(
            kept=False,
            predicted_perturbation=1.2 * perturbation + rng.uniform(0, 0.01),
            relative_perturbation=perturbation,
            optimisation={"denominator": 1 / (perturbation + rng.uniform(0, 0.01))},
        )
        steps.append(measured(step, "a", "b", ppl, **fields))
    return steps


def test_damage_is_drawn_against_each_predictor(predicted):
    figure = damage_prediction_figure(predicted)
    values = {
        "predicted before the edit": [r.predicted_perturbation for r in predicted],
        "relative perturbation": [r.relative_perturbation for r in predicted],
        "1 / |u·k|": [1 / r.optimisation["denominator"] for r in predicted],
    }
    assert [axes.get_xlabel() for axes in figure.axes] == list(values)
    finite = predicted[:-1]
    change = [math.log(r.perplexity["mean"] / 25) for r in finite]
    for axes in figure.axes:
        expected = {"harmless": [], "damaging": []}
        for x, y in zip(values[axes.get_xlabel()], change, strict=False):
            expected["damaging" if math.exp(y) > 1.1 else "harmless"].append([x, y])
        assert min(map(len, expected.values())) > 3
        drawn = {line.get_label(): np.array(points(line)) for line in axes.lines}
        assert drawn.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(drawn[name], expected[name], rtol=1e-12)
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "symlog")
    assert figure.axes[0].get_ylabel() == "change of the mean loss\n(nats a token)"
    assert [to_hex(line.get_color()) for line in figure.axes[0].lines] == [BLUE, RED]
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert named == ["harmless", "damaging"]


def test_the_title_says_how_well_a_predictor_ranks(predicted):
    figure = damage_prediction_figure(predicted[:-1])
    change = [r.perplexity["delta_nll_nats"] for r in predicted[:-1]]
    value = [r.relative_perturbation for r in predicted[:-1]]
    rho = stats.spearmanr(value, change)[0]
    above = [
        a > b
        for (a, change_a), (b, change_b) in itertools.product(
            zip(value, change, strict=True), repeat=2
        )
        if math.exp(change_a) > 1.1 >= math.exp(change_b)
    ]
    assert figure.axes[1].get_title() == f"Spearman {rho:.2f}, AUC {np.mean(above):.3f}"


def test_a_sequence_has_one_predictor(predicted):
    steps = [
        dataclasses.replace(step, total_relative_perturbation=2 * (step.relative_perturbation or 0))
        for step in predicted
    ]
    (axes,) = damage_prediction_figure(steps, single=False).axes
    assert axes.get_xlabel() == "relative perturbation of all edits"
    drawn = np.concatenate([np.array(points(line)) for line in axes.lines])
    expected = [2 * step.relative_perturbation for step in predicted[:-1]]
    np.testing.assert_allclose(np.sort(drawn[:, 0]), np.sort(expected))


def test_without_a_predictor_no_damage_is_drawn(predicted):
    assert damage_prediction_figure(predicted[:2]) is None
    assert damage_prediction_figure(predicted, single=False) is None


@pytest.fixture(scope="module")
def retention(tmp_path_factory):
    """A journal of 26 edits, each evaluated again after every second one, and its values."""
    rng = np.random.default_rng(0)
    values = np.full((26, 13), np.nan)
    steps = []
    for step in range(1, 27):
        record = measured(step, "a", "b", 26.0)
        if step % 2 == 0:
            column = values[:, step // 2 - 1]
            column[:step] = rng.uniform(0, 1, step)
            held = {str(i + 1): {"probability_new": column[i]} for i in range(step)}
            record = dataclasses.replace(record, retention=held)
        steps.append(record)
    return write_journal(tmp_path_factory.mktemp("retention") / "run", steps), values


def test_retention_is_a_map_of_fact_and_time(retention):
    journal, values = retention
    axes, colorbar = retention_figure(journal).axes
    (mesh,) = axes.collections
    drawn = mesh.get_array().reshape(values.shape)
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), np.isnan(values))
    np.testing.assert_allclose(np.ma.filled(drawn, -1), np.nan_to_num(values, nan=-1))
    assert mesh.get_clim() == (0, 1)
    assert mesh.get_cmap().name == "viridis"
    corners = mesh.get_coordinates()
    assert corners[0, 0].tolist() == [0, 0]
    assert corners[-1, -1].tolist() == [13, 26]  # time to the right
    assert axes.yaxis_inverted()  # the first fact on top
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("edits made", "fact of edit")
    assert colorbar.get_ylabel() == "P(new)"


def test_ticks_of_the_retention_name_evaluations_and_facts(retention):
    axes = retention_figure(retention[0]).axes[0]
    across = dict(
        zip(axes.get_xticks(), (t.get_text() for t in axes.get_xticklabels()), strict=True)
    )
    down = dict(zip(axes.get_yticks(), (t.get_text() for t in axes.get_yticklabels()), strict=True))
    assert across == {column + 0.5: str(2 * column + 2) for column in range(0, 13, 2)}
    assert down == {row + 0.5: str(row + 1) for row in range(0, 26, 3)}


def test_one_evaluation_is_no_map(tmp_path):
    steps = [measured(1, "a", "b", 26.0, retention={"1": {"probability_new": 0.5}})]
    assert retention_figure(write_journal(tmp_path / "run", steps)) is None
