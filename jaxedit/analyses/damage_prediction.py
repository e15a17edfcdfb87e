"""How well damage was foreseen: of a single edit from forward passes before it, from its push once
it was known, and from its denominator; of a sequence from the push of all its edits together.

Damage is a perplexity over 1.1 times the unedited model's, collapse one over 1000; how large it is
says the change of the mean loss a token (nats), whose ranking is that of the geometric mean of the
perplexities."""

from typing import Any, NamedTuple

import numpy as np

DAMAGE_RATIO = 1.1
COLLAPSE_PPL = 1000  # the papers' criterion
# Predictor -> what is read of a record; larger means more damage.
PREDICTORS = {
    "predicted before the edit": lambda record: record.get("predicted"),
    "relative perturbation": lambda record: record.get("relative_perturbation"),
    "1 / |u·k|": lambda record: (
        1 / record["editor"]["denominator"] if record["editor"].get("denominator") else None
    ),
}

SEQUENCE_PREDICTORS = {
    "relative perturbation of all edits": lambda record: record.get("relative_perturbation_of_all")
}


class DamagePredictor(NamedTuple):
    """How a predictor ranks edits.

    Attributes:
      name: the predictor's.
      value: of each edit.
      change_nats: of the mean loss, of each edit.
      spearman: rank correlation of the two over all edits.
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
    spearman_damaging: float
    auc: float
    worst_share: float
    collapsing_in_top: int


def damage_predictors(steps: list[dict[str, Any]], single: bool = True) -> list[DamagePredictor]:
    """Each predictor that all measured edits of a study have; none with fewer than three edits.

    The model that is measured after an edit of a sequence has those before it as well, so only what
    they push together counts."""
    measured = [record for record in steps if "perplexity" in record]
    if len(measured) < 3:
        return []
    found, predictors = [], PREDICTORS if single else SEQUENCE_PREDICTORS
    for name, read in predictors.items():
        values = [read(record) for record in measured]
        if None not in values:
            found.append(
                _damage_predictor(name, np.array([float(value) for value in values]), measured)
            )
    return found


def _damage_predictor(
    name: str, value: np.ndarray, measured: list[dict[str, Any]]
) -> DamagePredictor:
    from scipy import stats

    change_nats = np.array([float(record["perplexity"]["delta_nll_nats"]) for record in measured])
    damaging = np.array(
        [float(record["perplexity"]["ratio"]) > DAMAGE_RATIO for record in measured]
    )
    collapsed = np.array(
        [float(record["perplexity"]["mean"]) > COLLAPSE_PPL for record in measured]
    )
    ranks = stats.rankdata(value)  # ties share their mean rank
    auc, worst_share = np.nan, 0.0
    n_bad, n_good = int(damaging.sum()), int((~damaging).sum())
    if n_bad and n_good:
        auc = float((ranks[damaging].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_good))
    if n_bad:
        worst_share = float(np.mean(value >= value[damaging].min()))
    top = value >= np.sort(value)[-max(1, len(value) // 100)]
    return DamagePredictor(
        name=name,
        value=value,
        change_nats=change_nats,
        spearman=_spearman(value, change_nats),
        spearman_damaging=_spearman(value[damaging], change_nats[damaging]),
        auc=auc,
        worst_share=worst_share,
        collapsing_in_top=int(np.sum(top & collapsed)),
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy import stats

    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return np.nan
    return float(np.asarray(stats.spearmanr(a, b)[0]))
