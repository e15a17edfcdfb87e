"""How well damage was predicted: rank statistics against their definitions, pair by pair."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from journals import NOT_POSSIBLE, SKIPPED, measured
from scipy import stats

from jaxedit.analyses.damage_prediction import (
    damage_predictors,
    measured_damage,
    order_predictors,
)
from jaxedit.study.record import StepRecord


def edits(n=40, seed=0) -> list[StepRecord]:
    """Make single edits whose damage follows their perturbation with some noise.

    A third are damaging, a few collapse; some perturbations are equal.
    """
    rng = np.random.default_rng(seed)
    perturbations = np.exp(rng.normal(-3, 1.5, n))
    changes = 8 * perturbations * np.exp(rng.normal(0, 0.8, n))
    steps = []
    for step, (perturbation, change) in enumerate(zip(perturbations, changes, strict=True), 1):
        rounded = float(perturbation.round(2) + 0.001)
        fields = dict(
            kept=False,
            predicted_perturbation=rounded * 1.1,
            relative_perturbation=rounded,
            optimisation={"denominator": 1 / rounded},
        )
        steps.append(measured(step, "a", "b", 25.0 * math.exp(change), **fields))
    return steps


def with_perplexity(step: StepRecord, **values: float) -> StepRecord:
    """Return the step with other perplexities."""
    return dataclasses.replace(step, perplexity={**(step.perplexity or {}), **values})


@pytest.fixture(scope="module")
def steps():
    return edits()


@pytest.fixture(scope="module")
def predictor(steps):
    """Judge the relative perturbation."""
    return damage_predictors(steps)[1]


def is_damaging(step: StepRecord) -> bool:
    return step.perplexity["mean"] > 1.1 * 25


def test_predictors_of_a_single_edit(steps):
    found = {each.name: each.value for each in damage_predictors(steps)}
    assert list(found) == ["predicted before the edit", "relative perturbation", "1 / |u·k|"]
    perturbations = np.array([step.relative_perturbation for step in steps])
    np.testing.assert_allclose(found["predicted before the edit"], 1.1 * perturbations)
    np.testing.assert_allclose(found["relative perturbation"], perturbations)
    np.testing.assert_allclose(found["1 / |u·k|"], perturbations)


def test_damage_is_the_change_of_the_mean_loss(steps, predictor):
    damage = measured_damage(steps)
    expected = [math.log(step.perplexity["mean"] / 25) for step in steps]
    np.testing.assert_allclose(damage.change_nats, expected)
    np.testing.assert_allclose(predictor.change_nats, expected)
    assert damage.is_damaging.tolist() == [is_damaging(step) for step in steps]
    assert damage.is_collapsed.tolist() == [step.perplexity["mean"] > 1000 for step in steps]


def test_auc_is_the_share_of_pairs_in_the_right_order(steps, predictor):
    bad = [i for i, step in enumerate(steps) if is_damaging(step)]
    good = [i for i in range(len(steps)) if i not in bad]
    assert 3 < len(bad) < len(steps) - 3
    value = predictor.value
    assert len(set(value)) < len(value)  # equal ones count a half
    pairs = itertools.product(bad, good)
    above = [(value[b] > value[g]) + (value[b] == value[g]) / 2 for b, g in pairs]
    assert predictor.auc == pytest.approx(np.mean(above))
    assert 0.5 < predictor.auc < 1


def test_spearman_is_the_correlation_of_ranks(steps, predictor):
    def spearman(a, b) -> float:
        return stats.pearsonr(stats.rankdata(a), stats.rankdata(b))[0]

    value, change = predictor.value, predictor.change_nats
    bad = np.array([is_damaging(step) for step in steps])
    assert predictor.spearman == pytest.approx(spearman(value, change))
    assert predictor.spearman_harmless == pytest.approx(spearman(value[~bad], change[~bad]))
    assert predictor.spearman_damaging == pytest.approx(spearman(value[bad], change[bad]))


def test_how_far_down_the_ranking_damage_reaches(steps, predictor):
    value = predictor.value
    least = min(value[i] for i, step in enumerate(steps) if is_damaging(step))
    assert predictor.worst_share == sum(v >= least for v in value) / len(value)


def test_collapses_in_the_worst_hundredth(steps, predictor):
    collapsed = [step.perplexity["mean"] > 1000 for step in steps]
    assert 0 < sum(collapsed) < sum(map(is_damaging, steps))
    worst = int(np.argmax(predictor.value))  # a hundredth of forty is one
    assert predictor.collapsing_in_top == collapsed[worst]


def test_of_a_sequence_the_perturbation_of_all_edits_counts(steps, predictor):
    squares = [(step.relative_perturbation or 0) ** 2 for step in steps]
    sequence = [
        dataclasses.replace(step, total_relative_perturbation=square)
        for step, square in zip(steps, squares, strict=True)
    ]
    (each,) = damage_predictors(sequence, single=False)
    assert each.name == "relative perturbation of all edits"
    assert each.value.tolist() == squares
    assert each.spearman == pytest.approx(predictor.spearman)  # the same ranks


def test_the_orders_of_the_predicted_change_are_judged_by_themselves(steps):
    changes = measured_damage(steps).change_nats
    predicted = [
        dataclasses.replace(step, predicted_change={"first_nats": -change, "second_nats": change})
        for step, change in zip(steps, changes, strict=True)
    ]
    first, second = order_predictors(predicted)
    assert (first.name, second.name) == (
        "first order f of the predicted change",
        "second order s of the predicted change",
    )
    assert (first.spearman, second.spearman) == pytest.approx((-1, 1))
    assert order_predictors(steps) == []  # nothing was predicted
    later = dataclasses.replace(predicted[-1], predicted_change={"gradients_step": 3})
    assert order_predictors([*predicted[:-1], later]) == []  # it begins at another model


def test_fewer_than_three_edits_are_not_ranked():
    assert damage_predictors(edits(2)) == []


def test_a_predictor_that_an_edit_lacks_is_left_out(steps):
    lacking = [dataclasses.replace(steps[0], predicted_perturbation=None), *steps[1:]]
    found = damage_predictors(lacking)
    assert [each.name for each in found] == ["relative perturbation", "1 / |u·k|"]


def test_steps_without_a_perplexity_do_not_count(steps, predictor):
    unmeasured = dataclasses.replace(steps[0], perplexity=None, predicted_perturbation=None)
    found = damage_predictors([*steps, NOT_POSSIBLE, SKIPPED, unmeasured])
    assert found[1].spearman == predictor.spearman
    assert len(found) == 3


def test_without_damage_there_is_no_auc(steps):
    quiet = [
        with_perplexity(step, mean=25.0, ratio=1.0, delta_nll_nats=i / 1e3)
        for i, step in enumerate(steps)
    ]
    each = damage_predictors(quiet)[1]
    assert math.isnan(each.auc)
    assert math.isnan(each.spearman_damaging)
    assert each.spearman_harmless == each.spearman
    assert each.worst_share == 0
    assert each.collapsing_in_top == 0


def test_a_loss_that_is_not_finite_ranks_highest(steps):
    broken = with_perplexity(steps[0], mean=math.inf, ratio=math.inf, delta_nll_nats=math.inf)
    worst = with_perplexity(steps[0], mean=1e99, ratio=1e99, delta_nll_nats=1e9)
    found = [damage_predictors([each, *steps[1:]])[1] for each in (broken, worst)]
    assert found[0].spearman == pytest.approx(found[1].spearman)
    assert found[0].auc == pytest.approx(found[1].auc)
