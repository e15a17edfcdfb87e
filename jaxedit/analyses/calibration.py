"""Predicted changes of the loss beside measured ones: slope, rank correlation, error."""

from typing import NamedTuple

import numpy as np

from jaxedit.analyses.damage_prediction import DAMAGE_RATIO, is_since_unedited, spearman
from jaxedit.study.record import StepRecord

FEWEST = 3  # edits, for a line through them


class Calibration(NamedTuple):
    """How predicted changes of the loss compare with measured ones, over harmless edits.

    Harmless is a perplexity of at most DAMAGE_RATIO times the unedited model's.

    Attributes:
      n_edits: how many there are.
      spearman: rank correlation of predicted and measured change.
      slope: of the least-squares line of the measured change over the predicted one.
      offset_nats: where that line meets a predicted change of 0.
      median_error_nats: the median of |measured - predicted|.
      curvature_share: the constant c with which f + c s is nearest to what was measured, in least
        squares; NaN where all second orders are 0.
    """

    n_edits: int
    spearman: float
    slope: float
    offset_nats: float
    median_error_nats: float
    curvature_share: float


def calibrate(steps: list[StepRecord]) -> Calibration | None:
    """Compare predicted with measured changes; None with fewer than three harmless edits of both.

    Args:
      steps: the records of a study's edits.
    """
    rows = [
        [
            step.perplexity["delta_nll_nats"],
            *(step.predicted_change[key] for key in ("mean_nats", "first_nats", "second_nats")),
        ]
        for step in steps
        if step.perplexity is not None
        and step.predicted_change is not None
        and step.perplexity["ratio"] <= DAMAGE_RATIO
        and is_since_unedited(step.predicted_change)
    ]
    finite = [row for row in rows if np.all(np.isfinite(row))]
    if len(finite) < FEWEST:
        return None
    measured, predicted, first, second = np.array(finite, float).T
    is_constant = np.ptp(predicted) == 0 or np.ptp(measured) == 0
    slope, offset = (np.nan, np.nan) if is_constant else np.polyfit(predicted, measured, 1)
    squares = float(second @ second)
    return Calibration(
        n_edits=len(finite),
        spearman=spearman(predicted, measured),
        slope=float(slope),
        offset_nats=float(offset),
        median_error_nats=float(np.median(np.abs(measured - predicted))),
        curvature_share=float(second @ (measured - first)) / squares if squares else np.nan,
    )
