"""When the perplexity must be measured, where predicted changes decide that.

With eval.perplexity_every="auto" the perplexity is measured after an edit where the prediction asks
for it. Write x for the logarithm of the guard's statistic over the unedited model's. Since the last
measurement, m of x, the predicted x went from p_last to p, so that

    expected     e = m + (p - p_last)
    uncertainty  r = ERROR_SHARE * moved + |stderr - stderr_last|

where `moved` sums what the first and the second order of the predicted change moved by over the
kept edits since then: steps that cancel each other count. It is measured where e + r passes the
guard's limit, or where |e - m| + r passes MOST_UNKNOWN_NATS.

Where a measurement shows that the prediction was wrong by more than r and REFRESH_NATS, the edits
have moved the model so far that the gradients are no longer its own: they are read again, of the
model with all edits so far, and predictions start from there.

All of it is a fold over the journal's records, so a study that is resumed goes on as it would have.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxedit.edits.predicted_change import CURVATURE_SHARE, PredictedChange
from jaxedit.metrics.perplexity import Perplexity
from jaxedit.study.guard import Guard
from jaxedit.study.record import StepRecord

ERROR_SHARE = 0.5  # of what the prediction moved by, that it may be wrong by
MOST_UNKNOWN_NATS = 0.25  # of the statistic's logarithm, between two measurements: 1.3 times
REFRESH_NATS = 0.02  # beyond r, that a prediction is wrong by
N_FITTED = 8  # measured edits by which the second order's share is fitted
LARGEST_FITTED_NATS = 0.1  # larger changes are no quadratic any more, and not fitted
ORDERS = "first_nats", "second_nats", "stderr_nats"  # of a predicted change, in the journal
SHARE_PRIOR_NATS = 0.005  # second orders under this leave the share where it was


class Forecast(NamedTuple):
    """What the records of a study so far say of the model that it has now.

    Attributes:
      measured_nats: x at the last measurement of a kept edit; 0 of the unedited model.
      predicted_nats: the predicted x there.
      first_nats: the first order of the last kept edit's predicted change; so the next two.
      second_nats: its second order.
      stderr_nats: its standard error.
      moved_nats: by how much predictions moved since the last measurement.
      moved_stderr_nats: by how much their standard error did.
      gradients_step: after which edit the gradients were read; 0: of the unedited model.
      refreshes: whether they are read again where predictions turn out wrong.
      fits: whether the share c is fitted; single edits do not depend on which came before.
      fitted: first order, second order and measured change of the loss of the edits that the share
        is fitted by.
    """

    measured_nats: float = 0.0
    predicted_nats: float = 0.0
    first_nats: float = 0.0
    second_nats: float = 0.0
    stderr_nats: float = 0.0
    moved_nats: float = 0.0
    moved_stderr_nats: float = 0.0
    gradients_step: int = 0
    refreshes: bool = False
    fits: bool = False
    fitted: tuple[tuple[float, float, float], ...] = ()

    @property
    def curvature_share(self) -> float:
        """The constant c: 0.7, or fitted by the first harmless edits that were measured.

        Least squares of measured = f + c s, with a prior around 0.7.
        """
        if len(self.fitted) < N_FITTED:
            return CURVATURE_SHARE
        residuals = [(s, change - f - CURVATURE_SHARE * s) for f, s, change in self.fitted]
        covered = sum(s * residual for s, residual in residuals)
        squares = sum(s**2 for s, _ in residuals) + N_FITTED * SHARE_PRIOR_NATS**2
        return max(0.0, CURVATURE_SHARE + covered / squares)


def describe_change(
    forecast: Forecast,
    change: PredictedChange,
    score: Perplexity,
    base: Perplexity,
    guard: Guard,
) -> dict[str, float]:
    """Return what the journal says of a predicted change.

    Args:
      forecast: of the records before.
      change: by an edit, or by all edits since the gradients were read.
      score: of the model that the gradients were read of.
      base: the unedited model's perplexity.
      guard: whose statistic is predicted.
    """
    share = forecast.curvature_share
    expected = Perplexity(score.nll_nats + change.per_text(share) * score.n_tokens, score.n_tokens)
    return {
        **change.summary(share),
        "first_nats": change.mean_nats(0.0),
        "second_nats": change.mean_nats(1.0) - change.mean_nats(0.0),
        "log_ratio_nats": guard.log_ratio_nats(expected, base),
        "curvature_share": share,
        "gradients_step": forecast.gradients_step,
    }


def must_measure(forecast: Forecast, predicted: Mapping[str, float], guard: Guard) -> bool:
    """Tell whether a kept edit's perplexity must be measured.

    Args:
      forecast: of the records before.
      predicted: of `describe_change`, for the model with the edit.
      guard: whose limit must not be passed unseen.
    """
    step_nats = predicted["log_ratio_nats"] - forecast.predicted_nats
    expected = forecast.measured_nats + step_nats
    uncertainty = _uncertainty(forecast, predicted)
    limit = math.log(guard.max_ppl_ratio)
    was_over = guard.action == "keep" and forecast.measured_nats > limit
    may_pass = not was_over and not expected + uncertainty <= limit
    return may_pass or not abs(step_nats) + uncertainty <= MOST_UNKNOWN_NATS


def update_forecast(
    forecast: Forecast, record: StepRecord, unedited: Mapping[str, Any], guard: Guard
) -> Forecast:
    """Take in a record of a study: a step, or edits that were taken out again.

    Args:
      forecast: of the records before.
      record: the next one.
      unedited: the `perplexity` of the journal's baseline.
      guard: the study's.
    """
    if record.kind == "undo":  # the next step measures, and predicts from the unedited model
        return forecast._replace(moved_nats=math.inf, gradients_step=0)
    predicted, score = record.predicted_change, record.perplexity
    if predicted is None or "log_ratio_nats" not in predicted:  # an older version's lack it
        return forecast
    if score is not None and forecast.fits and not forecast.gradients_step:
        fitted = _fit(forecast, predicted, score["delta_nll_nats"])
        if fitted.curvature_share != forecast.curvature_share:
            # What was predicted with another c is not to be compared with what will be: this edit
            # counts, and the next one is measured.
            known = fitted._replace(fits=False)
            return update_forecast(known, record, unedited, guard)._replace(moved_nats=math.inf)
        forecast = fitted
    if not record.kept:
        # Where the edit's own prediction does not say so, kept ones that were not measured may be
        # what is wrong: the next one is measured.
        step_nats = predicted["log_ratio_nats"] - forecast.predicted_nats
        is_told = forecast.measured_nats + step_nats > math.log(guard.max_ppl_ratio)
        is_unclear = score is not None and forecast.moved_nats > 0 and not is_told
        return forecast._replace(moved_nats=math.inf) if is_unclear else forecast
    moved, moved_stderr = _moved(forecast, predicted)
    before, uncertainty = forecast, _uncertainty(forecast, predicted)
    forecast = forecast._replace(
        **{key: predicted[key] for key in ORDERS}, moved_nats=moved, moved_stderr_nats=moved_stderr
    )
    if score is None:
        return forecast
    measured = guard.log_statistic_nats(score) - guard.log_statistic_nats(unedited)
    step_nats = predicted["log_ratio_nats"] - before.predicted_nats
    error = abs(measured - before.measured_nats - step_nats)
    forecast = forecast._replace(
        measured_nats=measured,
        predicted_nats=predicted["log_ratio_nats"],
        moved_nats=0.0,
        moved_stderr_nats=0.0,
    )
    if not (forecast.refreshes and error > uncertainty + REFRESH_NATS):
        return forecast
    return forecast._replace(
        predicted_nats=measured, gradients_step=record.step, **dict.fromkeys(ORDERS, 0.0)
    )


def _fit(forecast: Forecast, predicted: Mapping[str, float], change_nats: float) -> Forecast:
    """Take in a measured edit for the share c, if it is harmless and more are needed."""
    if len(forecast.fitted) == N_FITTED or not abs(change_nats) < LARGEST_FITTED_NATS:
        return forecast
    orders = predicted["first_nats"], predicted["second_nats"]
    return forecast._replace(fitted=(*forecast.fitted, (*orders, change_nats)))


def _uncertainty(forecast: Forecast, predicted: Mapping[str, float]) -> float:
    """Return r, what the prediction may be wrong by since the last measurement."""
    moved, moved_stderr = _moved(forecast, predicted)
    return ERROR_SHARE * moved + moved_stderr


def _moved(forecast: Forecast, predicted: Mapping[str, float]) -> tuple[float, float]:
    """Return how far predictions and their standard error will have moved with an edit."""
    first, second, stderr = (abs(predicted[key] - getattr(forecast, key)) for key in ORDERS)
    return forecast.moved_nats + first + second, forecast.moved_stderr_nats + stderr
