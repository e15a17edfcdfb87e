"""Predicted changes beside measured ones: against lines drawn by hand and NumPy's least squares."""

import math

import numpy as np
import pytest
from journals import measured
from scipy import stats

from jaxedit.analyses.calibration import calibrate
from jaxedit.reports.markdown import damage_prediction_lines


def edits(change, first, second, share=0.7):
    """Make single edits with these measured and predicted changes; the unedited model has 25."""
    return [
        measured(
            step,
            "a",
            "b",
            25.0 * math.exp(delta),
            kept=False,
            relative_perturbation=0.01,
            predicted_change={
                "mean_nats": f + share * s,
                "stderr_nats": 0.001,
                "first_nats": f,
                "second_nats": s,
            },
        )
        for step, (delta, f, s) in enumerate(zip(change, first, second, strict=True), start=1)
    ]


@pytest.fixture
def orders():
    rng = np.random.default_rng(3)
    return rng.normal(0, 0.01, 20), rng.uniform(0, 0.03, 20)


def test_the_best_share_and_a_line_of_slope_one(orders):
    first, second = orders
    found = calibrate(edits(first + 0.7 * second, first, second))
    assert found._asdict() == pytest.approx(
        dict(
            n_edits=20,
            spearman=1.0,
            slope=1.0,
            offset_nats=0.0,
            median_error_nats=0.0,
            curvature_share=0.7,
        ),
        abs=1e-9,
    )


def test_against_least_squares(orders):
    first, second = orders
    change = 0.5 * first + 0.2 * second + np.random.default_rng(4).normal(0, 0.002, 20)
    found = calibrate(edits(change, first, second))
    line = stats.linregress(first + 0.7 * second, change)
    share = np.linalg.lstsq(second[:, None], change - first, rcond=None)[0]
    assert (found.slope, found.offset_nats) == pytest.approx((line.slope, line.intercept))
    assert found.curvature_share == pytest.approx(share[0])
    assert found.spearman == pytest.approx(stats.spearmanr(first + 0.7 * second, change)[0])
    errors = np.abs(change - first - 0.7 * second)
    assert found.median_error_nats == pytest.approx(np.median(errors))


def test_damaging_edits_and_those_not_measured_do_not_count(orders):
    first, second = orders
    change = first + 0.7 * second
    change[5:] = 1.0
    assert calibrate(edits(change, first, second)).n_edits == 5
    assert calibrate(edits(change, first, second)[3:]) is None
    assert calibrate([]) is None


def test_predictions_from_later_gradients_do_not_count(orders):
    """They are since those were read, the measured change is since the unedited model."""
    first, second = orders
    steps = edits(first + 0.7 * second, first, second)
    for step in steps[4:]:
        step.predicted_change["gradients_step"] = 4
    assert calibrate(steps).n_edits == 4


def test_the_report_says_it(orders):
    first, second = orders
    text = "\n".join(damage_prediction_lines(edits(0.5 * (first + 0.7 * second), first, second)))
    assert "the measured change is 0.50 times the predicted one plus" in text
    assert "Spearman 1.000" in text
