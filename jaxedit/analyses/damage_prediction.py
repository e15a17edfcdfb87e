"""How well damage was predicted: of a single edit before it is made and from its perturbation.

Predictors of a single edit are what forward passes alone say (`jaxedit.study.screening`), the
edit's relative perturbation, 1 / |u . k| of its denominator, and the change of the loss that was
predicted; of a sequence the relative perturbation of all its edits together, and their predicted
change. Damage is a perplexity over 1.1 times the unedited model's,
collapse one over 1000 where the unedited model's is not. Its size is the change of the mean loss a
token (nats), whose ranking is that of the geometric mean of the perplexities.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxedit.study.record import StepRecord

DAMAGE_RATIO = 1.1
COLLAPSE_PPL = 1000  # the papers' criterion


def has_collapsed(perplexity: float, unedited: float) -> bool:
    """Tell whether edits took a model over COLLAPSE_PPL, where it was not before them."""
    return unedited <= COLLAPSE_PPL < perplexity


class DamagePredictor(NamedTuple):
    """How a predictor ranks edits.

    Attributes:
      name: the predictor's.
      value: of each edit; larger means more damage.
      change_nats: of the mean loss a token, of each edit.
      spearman: rank correlation of the two over all edits.
      spearman_harmless: over the harmless ones; NaN with fewer than three.
      spearman_damaging: over the damaging ones; NaN with fewer than three.
      auc: the chance that a damaging edit ranks above a harmless one; NaN where there are none of
        either.
      worst_share: the smallest share of the ranking, from its top, that holds all damaging edits.
      collapsing_in_top: how many of the collapsing edits lie in the worst hundredth of the ranking.
    """

    name: str
    value: np.ndarray
    change_nats: np.ndarray
    spearman: float
    spearman_harmless: float
    spearman_damaging: float
    auc: float
    worst_share: float
    collapsing_in_top: int

    @property
    def is_signed(self) -> bool:
        """Whether it tells edits that help from edits that hurt: some values are negative."""
        return bool(np.any(self.value < 0))


class Damage(NamedTuple):
    """What measured edits did to the model.

    Attributes:
      records: of the edits after which the perplexity was measured.
      change_nats: of the mean loss a token.
      is_damaging: whether the perplexity is over DAMAGE_RATIO times the unedited model's.
      is_collapsed: whether the edit took it over COLLAPSE_PPL.
    """

    records: list[StepRecord]
    change_nats: np.ndarray
    is_damaging: np.ndarray
    is_collapsed: np.ndarray


def measured_damage(steps: list[StepRecord]) -> Damage:
    """Collect what the edits did after which the perplexity was measured."""
    records = [record for record in steps if record.perplexity is not None]
    perplexities = [record.perplexity or {} for record in records]
    # Every record knows the unedited model's, unless its own overflowed.
    means, ratios = (np.array([p[key] for p in perplexities], float) for key in ("mean", "ratio"))
    known = np.flatnonzero(np.isfinite(ratios) & np.isfinite(means) & (ratios > 0))
    unedited = float(means[known[0]] / ratios[known[0]]) if len(known) else 0.0
    return Damage(
        records=records,
        change_nats=np.array([p["delta_nll_nats"] for p in perplexities], float),
        is_damaging=ratios > DAMAGE_RATIO,
        is_collapsed=np.array([has_collapsed(mean, unedited) for mean in means], bool),
    )


def damage_predictors(steps: list[StepRecord], single: bool = True) -> list[DamagePredictor]:
    """Judge each predictor that all measured edits of a study have.

    The model that is measured after an edit of a sequence has those before it as well, so only the
    relative perturbation of all of them together counts.

    Args:
      steps: the records of a study's edits.
      single: whether each edit was made on the untouched model.

    Returns:
      The predictors; none with fewer than three measured edits.
    """
    damage = measured_damage(steps)
    return _judge_known(_predictions(damage.records, single), damage)


def order_predictors(steps: list[StepRecord]) -> list[DamagePredictor]:
    """Judge the two orders of the predicted change by themselves, where all edits have them."""
    damage = measured_damage(steps)
    changes = [record.predicted_change or {} for record in damage.records]
    if not all(map(is_since_unedited, changes)):
        return []
    orders = {
        "first order f of the predicted change": [change.get("first_nats") for change in changes],
        "second order s of the predicted change": [change.get("second_nats") for change in changes],
    }
    return _judge_known(orders, damage)


def is_since_unedited(predicted_change: Mapping[str, Any]) -> bool:
    """Tell whether a record's predicted change begins at the unedited model.

    Where gradients were read again it begins at the model that they were read of.
    """
    return not predicted_change.get("gradients_step")


def _judge_known(
    predictions: dict[str, list[float | None]], damage: Damage
) -> list[DamagePredictor]:
    """Judge the predictors that all edits have; none with fewer than three edits."""
    if len(damage.records) < 3:
        return []
    return [
        _judge(name, np.array(values, float), damage)
        for name, values in predictions.items()
        if None not in values
    ]


def _predictions(records: list[StepRecord], single: bool) -> dict[str, list[float | None]]:
    """Return for each predictor its value for each edit, None where an edit lacks it."""
    changes = [record.predicted_change or {} for record in records]
    # Where gradients were read again, only the statistic's change is since the unedited model.
    key = "mean_nats" if all(map(is_since_unedited, changes)) else "log_ratio_nats"
    predicted = {"predicted change of the loss": [change.get(key) for change in changes]}
    if not single:
        total = [record.total_relative_perturbation for record in records]
        return {"relative perturbation of all edits": total} | predicted
    denominators = [(record.optimisation or {}).get("denominator") for record in records]
    return {
        "predicted before the edit": [record.predicted_perturbation for record in records],
        "relative perturbation": [record.relative_perturbation for record in records],
        "1 / |u·k|": [1 / value if value else None for value in denominators],
    } | predicted


def _judge(name: str, value: np.ndarray, damage: Damage) -> DamagePredictor:
    """Judge a predictor by its value for each measured edit."""
    from scipy import stats

    damaging = damage.is_damaging
    n_damaging, n_harmless = int(damaging.sum()), int((~damaging).sum())

    # AUC from ranks (Mann-Whitney): ties share their mean rank.
    ranks, auc = stats.rankdata(value), np.nan
    if n_damaging and n_harmless:
        lowest_sum = n_damaging * (n_damaging + 1) / 2
        auc = float((ranks[damaging].sum() - lowest_sum) / (n_damaging * n_harmless))

    # How far down the ranking the damaging edits reach, and how many collapses its top holds.
    worst_share = float(np.mean(value >= value[damaging].min())) if n_damaging else 0.0
    in_top = value >= np.sort(value)[-max(1, len(value) // 100)]
    return DamagePredictor(
        name=name,
        value=value,
        change_nats=damage.change_nats,
        spearman=spearman(value, damage.change_nats),
        spearman_harmless=spearman(value[~damaging], damage.change_nats[~damaging]),
        spearman_damaging=spearman(value[damaging], damage.change_nats[damaging]),
        auc=auc,
        worst_share=worst_share,
        collapsing_in_top=int(np.sum(in_top & damage.is_collapsed)),
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the rank correlation; NaN with fewer than three values, or equal ones."""
    from scipy import stats

    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return np.nan
    return float(np.asarray(stats.spearmanr(a, b)[0]))
