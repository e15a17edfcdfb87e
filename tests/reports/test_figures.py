"""Damage prediction and retention: what is drawn, against the journal's numbers."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from drawings import points
from journals import measured, write_journal
from matplotlib.colors import to_hex
from scipy import stats

from jaxedit.reports.figures import DAMAGING, HARMLESS, damage_prediction_figure, retention_figure


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
    assert [to_hex(line.get_color()) for line in figure.axes[0].lines] == [HARMLESS, DAMAGING]
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
    """Write a journal of 26 edits, evaluated again after every second; return the values."""
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
