"""eval.perplexity_every="auto": measured where the prediction asks for it, decided as if always."""

import json
import math

import numpy as np
import pytest

from jaxedit.edits.predicted_change import PredictedChange
from jaxedit.metrics.perplexity import Perplexity
from jaxedit.study import forecast
from jaxedit.study.forecast import Forecast, describe_change, must_measure, update_forecast
from jaxedit.study.guard import Guard
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study
from jaxedit.study.record import StepRecord

UNEDITED = {"mean": 100.0, "log_mean_nats": math.log(100.0)}
GUARD = Guard(max_ppl_ratio=2.0)


def prediction(first, second, log_ratio, stderr=0.0):
    return dict(first_nats=first, second_nats=second, log_ratio_nats=log_ratio, stderr_nats=stderr)


def record(predicted, ratio=None, kept=True, change=1.0):
    score = None
    if ratio is not None:
        score = dict(log_mean_nats=math.log(100 * ratio), mean=100 * ratio, delta_nll_nats=change)
    return StepRecord(step=1, kept=kept, predicted_change=predicted, perplexity=score)


def after(*records, guard=GUARD):
    forecast = Forecast(fits=True)
    for each in records:
        forecast = update_forecast(forecast, each, UNEDITED, guard)
    return forecast


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (prediction(0.0, 0.0, 0.0), False),
        (prediction(0.01, 0.01, 0.017), False),
        # |step| + half of what the orders moved by: 0.167 + 0.5 x 0.2 over 0.25
        (prediction(0.1, 0.1, 0.167), True),
        # orders that cancel each other are uncertain all the same
        (prediction(-0.28, 0.4, 0.0), True),
        (prediction(0.0, 0.0, 0.0, stderr=0.26), True),
        (prediction(0.0, 0.0, math.nan), True),
        (prediction(0.0, 0.0, 1.2), True),
    ],
)
def test_it_is_measured_where_the_prediction_moved(predicted, expected):
    assert must_measure(Forecast(), predicted, GUARD) is expected


def test_small_steps_add_up_until_one_is_measured():
    steps = [prediction(0.01 * n, 0.01 * n, 0.017 * n) for n in range(1, 22)]
    looks, forecast = [], Forecast()
    for number, predicted in enumerate(steps, start=1):
        due = must_measure(forecast, predicted, GUARD)
        looks += [number] if due else []
        made = record(predicted, ratio=1.0 + 0.01 * number if due else None)
        forecast = update_forecast(forecast, made, UNEDITED, GUARD)
    # 0.017 n + 0.5 x 0.02 n passes 0.25 at n = 10, and again ten steps later
    assert looks == [10, 20]


def test_near_the_limit_smaller_steps_are_measured():
    near = after(record(prediction(0.3, 0.3, 0.5), ratio=1.99))
    assert must_measure(near, prediction(0.305, 0.305, 0.508), GUARD)
    assert not must_measure(near, prediction(0.295, 0.295, 0.485), GUARD)
    assert not must_measure(near, prediction(0.305, 0.305, 0.508), Guard(max_ppl_ratio=2.2))


def test_a_model_kept_over_the_limit_is_not_measured_after_every_edit():
    keep = Guard(max_ppl_ratio=2.0, action="keep")
    over = after(record(prediction(0.3, 0.3, 0.5), ratio=3.0), guard=keep)
    assert not must_measure(over, prediction(0.301, 0.301, 0.501), keep)


def test_a_rolled_back_edit_leaves_the_forecast_where_it_was():
    before = after(record(prediction(0.01, 0.01, 0.02), ratio=1.1))
    rejected = record(prediction(1.0, 1.0, 2.0), ratio=9.0, kept=False)
    assert update_forecast(before, rejected, UNEDITED, GUARD) == before


def test_a_new_share_has_the_next_edit_measured():
    """What was predicted with the one before is not compared with what is predicted now."""
    steps = [
        record(prediction(0.001 * n, 0.01 * n, 0.008 * n), ratio=math.exp(0.001 * n), change=0.001)
        for n in range(1, 9)
    ]
    assert after(*steps[:7]).moved_nats == 0
    found = after(*steps)
    assert found.curvature_share < 0.5
    assert must_measure(found, steps[-1].predicted_change, GUARD)


def test_after_new_gradients_nothing_is_fitted():
    """Their orders are of the model that they were read of, the measured change is not."""
    start = Forecast(fits=True, refreshes=True)
    far = record(prediction(0.02, 0.02, 0.02), ratio=1.1, change=0.09)
    forecast = update_forecast(start, far, UNEDITED, GUARD)
    for _ in range(9):
        near = record(prediction(0.0, 0.01, math.log(1.1)), ratio=1.1, change=0.09)
        forecast = update_forecast(forecast, near, UNEDITED, GUARD)
    assert forecast.curvature_share == 0.7


def test_a_violation_behind_unmeasured_edits_has_the_next_one_measured():
    small = prediction(0.001, 0.001, 0.002)
    unclear = after(record(small), record(prediction(0.1, 0.1, 0.2), ratio=3.0, kept=False))
    assert must_measure(unclear, small, GUARD)
    # log 2 is 0.69: this violation was predicted, of this edit
    told = after(record(small), record(prediction(0.5, 0.5, 1.0), ratio=3.0, kept=False))
    assert not must_measure(told, small, GUARD)
    clear = after(record(small, ratio=1.0), record(small, ratio=3.0, kept=False))
    assert not must_measure(clear, small, GUARD)


def test_after_an_undo_the_next_edit_is_measured():
    undone = StepRecord(kind="undo", step=1, undone=[1])
    forecast = after(record(prediction(0.01, 0.01, 0.02), ratio=1.1), undone)
    assert must_measure(forecast, prediction(0.01, 0.01, 0.02), GUARD)


def test_the_share_is_fitted_by_the_first_measured_edits():
    """By least squares of measured = f + c s around 0.7, in NumPy."""
    rng = np.random.default_rng(0)
    f, s = rng.normal(0, 0.02, 12), rng.uniform(0.01, 0.04, 12)
    change = f + 0.4 * s
    records = [
        record(prediction(f[i], s[i], 0.0), ratio=1.0, kept=False, change=change[i])
        for i in range(12)
    ]
    assert after(*records[:7]).curvature_share == 0.7
    prior = 0.005 * math.sqrt(8)
    rows, wanted = np.append(s[:8], prior)[:, None], np.append(change[:8] - f[:8], 0.7 * prior)
    (fitted,) = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    for n in (8, 12):
        assert after(*records[:n]).curvature_share == pytest.approx(fitted)
    assert fitted == pytest.approx(0.4, abs=0.05)


def test_predictions_that_were_wrong_ask_for_new_gradients():
    start = Forecast(refreshes=True)
    # expected 0.02, r = 0.02, measured 0.03 and then log(1.1)
    near = record(prediction(0.02, 0.02, 0.02), ratio=math.exp(0.03))
    assert update_forecast(start, near, UNEDITED, GUARD).gradients_step == 0
    far = record(prediction(0.02, 0.02, 0.02), ratio=1.1)
    found = update_forecast(start, far, UNEDITED, GUARD)
    assert found.gradients_step == 1
    # predictions go on from what was measured, with orders that start at nothing
    assert found.measured_nats == found.predicted_nats == pytest.approx(math.log(1.1))
    assert not must_measure(found, prediction(0.01, 0.0, math.log(1.1) + 0.01), GUARD)
    assert update_forecast(Forecast(), far, UNEDITED, GUARD).gradients_step == 0


@pytest.mark.parametrize("statistic", ["mean", "pooled", "median"])
def test_the_guards_statistic_is_predicted(statistic):
    base = Perplexity(np.array([30.0, 50.0, 20.0]), np.array([10, 10, 5]))
    change = PredictedChange(np.array([0.1, 0.0, -0.2]), np.array([[0.2, 0.0, 0.0], [0.0] * 3]))
    guard = Guard(statistic=statistic)
    found = describe_change(Forecast(), change, base, base, guard)
    losses = np.array([3.1 + 0.07, 5.0, 3.8])
    unedited = np.array([3.0, 5.0, 4.0])
    expected = {
        "mean": np.log(np.mean(np.exp(losses)) / np.mean(np.exp(unedited))),
        "pooled": ([10, 10, 5] @ (losses - unedited)) / 25,
        "median": np.median(losses) - np.median(unedited),
    }
    assert found["log_ratio_nats"] == pytest.approx(expected[statistic])


FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": target}
    for target in ("Paris", "Rome")
    for subject in ("BP", "Bob", "Ann", "Tim", "The man")
]
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]


@pytest.fixture
def run(study_config, tmp_path):
    """Make a function: (folder, how often, **keys) -> the records of a study's steps."""

    def make(folder, every, **keys):
        hyper = dict(layer=3, context_templates=("{}",), v_num_grad_steps=4, clamp_norm_factor=0.1)
        evaluation = dict(prediction_draws=3, perplexity_every=every)
        guard = dict(max_ppl_ratio=1.013, max_relative_perturbation=1e6)
        config = study_config("rome", FACTS, TEXTS, hyper, evaluation, guard=guard, **keys)
        run_study(config, tmp_path / folder)
        return [step.record for step in read_journal(tmp_path / folder).steps[1:]]

    return make


def test_a_study_decides_as_one_that_measures_each(run):
    each, auto = run("each", 1), run("auto", "auto")
    assert [record.kept for record in auto] == [record.kept for record in each]
    assert {record.kept for record in each} == {True, False}
    measured = [record.perplexity is not None for record in auto]
    assert not all(measured)
    assert measured[-1]
    for a, b in zip(auto, each, strict=True):
        assert a.perplexity in (None, b.perplexity)


def test_a_study_that_is_resumed_measures_after_the_same_edits(run):
    whole = run("whole", "auto")
    for n_facts in (3, 7, 10):
        resumed = run("resumed", "auto", n_facts=n_facts)
    # the last edit of each part is measured too
    expected = [record.step for record in whole if record.perplexity]
    found = [record.step for record in resumed if record.perplexity]
    assert set(expected) <= {*found, 4, 5, 6, 8, 9}
    assert {3, 7, 10} <= set(found)


def test_gradients_are_read_again_and_a_resumed_study_has_them(run, monkeypatch):
    """Where every prediction counts as wrong; the numbers are those of a study in one piece."""
    monkeypatch.setattr(forecast, "REFRESH_NATS", -1.0)
    whole = run("far", "auto")
    steps = [made.predicted_change["gradients_step"] for made in whole]
    assert steps[0] == 0
    assert len(set(steps)) > 2
    measured = [made.step for made in whole if made.perplexity and made.kept]
    for made in whole:
        assert made.predicted_change["gradients_step"] == max(
            (step for step in measured if step < made.step), default=0
        )
    n_done = measured[-2]
    run("far_resumed", "auto", n_facts=n_done)
    resumed = run("far_resumed", "auto")
    assert [made.predicted_change for made in resumed] == [made.predicted_change for made in whole]


def test_single_edits_are_measured_where_they_move_the_prediction(run):
    records = run("single", "auto", mode="single", single_batch_size=4)
    for made in records[:-1]:
        due = must_measure(Forecast(), made.predicted_change, Guard(max_ppl_ratio=1.013))
        assert (made.perplexity is not None) == due


def test_draws_are_chosen_for_it(study_config, tmp_path):
    hyper = dict(layer=3, context_templates=("{}",), v_num_grad_steps=1)
    config = study_config("rome", FACTS[:1], TEXTS, hyper, dict(perplexity_every="auto"))
    folder = run_study(config, tmp_path / "run")
    described = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert described["config"]["eval"]["prediction_draws"] == 12


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (dict(perplexity_every="sometimes"), r"every='sometimes': expected a positive number of"),
        (dict(perplexity_every=0), r"every=0: expected a positive number of edits, or 'auto'"),
        (dict(perplexity_every=1.5), r"every=1.5: expected a positive number of edits, or 'auto'"),
        (dict(perplexity_every="auto", prediction_draws=1), r"prediction_draws=1: .* two draws"),
    ],
)
def test_other_values_are_refused(study_config, tmp_path, evaluation, message):
    config = study_config("rome", FACTS, TEXTS, dict(layer=3), evaluation)
    with pytest.raises(ValueError, match=message):
        run_study(config, tmp_path / "run")
