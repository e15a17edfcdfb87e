"""How well a study's damage was predicted, as sentences and a table."""

from typing import NamedTuple

from jaxedit.analyses.calibration import calibrate
from jaxedit.analyses.damage_prediction import (
    DAMAGE_RATIO,
    damage_predictors,
    measured_damage,
    order_predictors,
)
from jaxedit.reports.formatting import format_statistic
from jaxedit.study.record import StepRecord

PREDICTION_TITLE = "How well the damage was predicted"
HEADER = [
    *("predictor", "Spearman", "of the harmless", "of the damaging", "AUC"),
    *("holds all damaging", "collapses in worst 1 %"),
]


class PredictionNumbers(NamedTuple):
    """What a report says of the predictors of damage.

    Attributes:
      sentences: what they were judged on.
      header: of a table with a row for each.
      rows: of it.
      calibration: sentences on the size of the predicted change; none where too few edits have it.
    """

    sentences: list[str]
    header: list[str]
    rows: list[list[str]]
    calibration: list[str]


def prediction_numbers(steps: list[StepRecord], single: bool = True) -> PredictionNumbers | None:
    """Judge the predictors of a study; None where there is none.

    Args:
      steps: the records of its edits.
      single: whether each edit was made on the untouched model.
    """
    predictors = damage_predictors(steps, single)
    if not predictors:
        return None
    damage = measured_damage(steps)
    n_damaging, n_collapsed = int(damage.is_damaging.sum()), int(damage.is_collapsed.sum())
    rows = [
        [
            each.name,
            format_statistic(each.spearman, 3),
            format_statistic(each.spearman_harmless, 3),
            format_statistic(each.spearman_damaging, 3),
            format_statistic(each.auc, 3),
            f"worst {100 * each.worst_share:.1f} %" if n_damaging else "–",
            f"{each.collapsing_in_top} of {n_collapsed}",
        ]
        for each in [*predictors, *order_predictors(steps)]
    ]
    sentences = [
        f"{len(damage.records)} edits were measured, {n_damaging} of them damaging (over "
        f"{DAMAGE_RATIO:g} times the unedited perplexity), {n_collapsed} collapsing.",
        "Rank correlations are with the change of the mean loss.",
    ]
    return PredictionNumbers(sentences, HEADER, rows, _calibration_sentences(steps))


def _calibration_sentences(steps: list[StepRecord]) -> list[str]:
    """Say how predicted changes compare with measured ones; nothing where there are too few."""
    found = calibrate(steps)
    if found is None:
        return []
    return [
        f"Of the {found.n_edits} harmless edits whose change of the loss was predicted, the "
        f"measured change is {format_statistic(found.slope, 2)} times the predicted one plus "
        f"{found.offset_nats:.2g} nats a token (Spearman {format_statistic(found.spearman, 3)}), "
        f"and half of them are within {found.median_error_nats:.2g} nats of it.",
        "The share c of the second order that fits them best is "
        f"{format_statistic(found.curvature_share, 2)}.",
    ]
