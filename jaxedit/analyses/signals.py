"""Which signal of a long sequence warns first: numbers after each edit, and the tasks' fall.

Signals of a sequence, each beside the unedited model:

    perplexity, pooled, median   the texts' (over the unedited model's)
    KL                           KL(unedited || edited), nats a token of the texts
    predicted change             of the logarithm of the guard's statistic
    relative perturbation        of all edits together
    norm                         of all edits together over the edited weight's, the largest layer's
    cosine                       of an update and the one before, over all edited weights, absolute
    hyperspherical energy        sum over i != j of 1 / |w_i - w_j| over a weight's neurons w, each
                                 of length 1 (2510.01172): its relative change, the largest layer's

A task falls at the first evaluated edit from which on its accuracy stays below the unedited model's
by more than two standard errors of the difference (binomial).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxedit.analyses.damage_prediction import DAMAGE_RATIO
from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit, to_dense
from jaxedit.edits.weights import base_weight, sum_of_edits
from jaxedit.models.model import Model
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord
from jaxedit.study.replay import edited_model

# Each signal's limit, in its own unit: what is taken as a warning.
LIMITS = {
    "perplexity": DAMAGE_RATIO,
    "pooled perplexity": DAMAGE_RATIO,
    "median perplexity": DAMAGE_RATIO,
    "KL": 0.1,
    "predicted change": math.log(DAMAGE_RATIO),
    "relative perturbation": 0.1,
    "norm": 1.0,
    "cosine": 0.5,
    "hyperspherical energy": 0.01,
}
N_STDERR = 2.0  # of the difference of two accuracies, that a task has fallen by


class Signals(NamedTuple):
    """Signals after an edit.

    Attributes:
      step: the edit's number.
      values: signal -> its value; those that were not measured are left out.
    """

    step: int
    values: dict[str, float]


class StudySignals(NamedTuple):
    """What a sequence's signals and tasks say.

    Attributes:
      name: of the study.
      found: the signals after each edit.
      evaluated: `step` and `tasks` of the models that were evaluated, in the order of their steps.
    """

    name: str
    found: Sequence[Signals]
    evaluated: Sequence[Mapping[str, Any]] = ()

    @property
    def fall(self) -> int | None:
        """The first edit after which a task has fallen; None: none has."""
        falls = fall_between(self.evaluated)
        return falls and falls[1]


class Lead(NamedTuple):
    """When a signal passes its limit, beside the tasks' fall.

    Attributes:
      signal: its name.
      limit: that it passes.
      step: the first edit after which it is over it; None: it never is.
      n_before: how many edits before the first task falls; negative: after. None: one of the two
        never happens.
    """

    signal: str
    limit: float
    step: int | None
    n_before: int | None


def read_signals(journal: Journal) -> list[Signals]:
    """Read and compute the signals after each edit of a sequence that was kept.

    Args:
      journal: of a sequence whose edits are journalled one by one.

    Raises:
      ValueError: of single edits, where the journal does not hold each edit or holds none, and
        where the sequence begins with edits of another.
    """
    config = journal.run["config"]
    if config["mode"] == "single" or config["journal_dense_every"] > 1:
        raise ValueError(
            f"{journal.folder}: expected a sequence whose edits are journalled one by one "
            f"(mode={config['mode']}, journal_dense_every={config['journal_dense_every']})"
        )
    if config["start"]["run"] or config["start"]["edit"]:
        raise ValueError(
            f"{journal.folder} begins with edits of another: expected a sequence that begins with "
            "the unedited model, which all signals are compared with"
        )
    if len(journal.steps) < 2:
        raise ValueError(f"{journal.folder} holds no edit yet; run the study first")
    records = [step.record for step in journal.steps]
    unedited, found = records[0].perplexity or {}, []
    for record, weights in zip(_kept(journal), _weights(journal), strict=True):
        # What was measured with an edit in the model that it lacks now is of another model.
        had_others = any(each.was_in_model_at(record.step) for each in records)
        measured = {} if had_others else measured_signals(record, unedited)
        found.append(Signals(record.step, measured | weights))
    return found


def measured_signals(record: StepRecord, unedited: Mapping[str, Any]) -> dict[str, float]:
    """Return the signals that a record of the journal has.

    Args:
      record: of an edit.
      unedited: the perplexity of the journal's baseline.
    """
    score = record.perplexity or {}
    named = {"perplexity": "mean", "pooled perplexity": "pooled", "median perplexity": "median"}
    values = {
        signal: score[key] / unedited[key]
        for signal, key in named.items()
        if key in score and key in unedited
    }
    predicted = (record.predicted_change or {}).get("log_ratio_nats")
    others = {
        "KL": record.kl_nats,
        "predicted change": predicted,
        "relative perturbation": record.total_relative_perturbation,
    }
    return values | {name: value for name, value in others.items() if value is not None}


def evaluated_steps(n_steps: int, every: int, falls: tuple[int, int] | None = None) -> list[int]:
    """Return after which edits the tasks are evaluated.

    Args:
      n_steps: how many there are.
      every: of which each so many, and the last one.
      falls: between which two of them the first task falls; two more are evaluated there.
    """
    steps = {*range(0, n_steps + 1, every), n_steps}
    if falls is not None:
        last, first = falls
        steps |= {last + (first - last) // 3, last + 2 * (first - last) // 3}
    return sorted(steps)


def fall_between(rows: Sequence[Mapping[str, Any]], metric: str = "acc") -> tuple[int, int] | None:
    """Find the evaluated edits between which the first task falls; None: none does.

    Args:
      rows: `step` and `tasks` of each evaluated model in the order of their steps, the unedited
        one first; there may be none.
      metric: of the tasks.
    """
    falls = []
    for task in rows[0]["tasks"] if rows else ():
        is_low = [_is_lower(rows[0]["tasks"][task], row["tasks"][task], metric) for row in rows]
        at = len(rows)
        while at > 1 and is_low[at - 1]:
            at -= 1
        if at < len(rows):
            falls.append((rows[at - 1]["step"], rows[at]["step"]))
    return min(falls, key=lambda pair: pair[1], default=None)


def check_metric(tasks: Mapping[str, Any], metric: str = "acc") -> None:
    """Check that every task has a metric and says of how many items it is.

    Raises:
      ValueError: where one does not.
    """
    lacking = [task for task, numbers in tasks.items() if not {metric, "n"} <= numbers.keys()]
    if lacking:
        raise ValueError(
            f"{', '.join(lacking)}: expected tasks with the metric {metric!r} over a number of "
            "items; name the tasks of a group by themselves"
        )


def leads(study: StudySignals) -> list[Lead]:
    """Tell for each signal that was measured when it passes its limit, the earliest first."""
    rows = []
    for signal, limit in LIMITS.items():
        known = [(each.step, each.values[signal]) for each in study.found if signal in each.values]
        if not known:
            continue
        step = next((step for step, value in known if not value <= limit), None)
        n_before = None if step is None or study.fall is None else study.fall - step
        rows.append(Lead(signal, limit, step, n_before))
    return sorted(rows, key=lambda row: math.inf if row.step is None else row.step)


def hyperspherical_energy(weight_FD: np.ndarray) -> float:
    """Compute the energy of a weight's neurons, its columns, on the sphere (2510.01172)."""
    neuron_DF = np.asarray(weight_FD, np.float64).T
    neuron_DF = neuron_DF / np.linalg.norm(neuron_DF, axis=1, keepdims=True)
    square_DD = np.maximum(2.0 - 2.0 * neuron_DF @ neuron_DF.T, 0.0)
    is_pair = ~np.eye(len(neuron_DF), dtype=bool)
    with np.errstate(divide="ignore"):
        return float(np.sum(1.0 / np.sqrt(square_DD[is_pair])))


def _kept(journal: Journal) -> list[StepRecord]:
    return [step.record for step in journal.kept_steps]


def _weights(journal: Journal) -> Iterator[dict[str, float]]:
    """Compute what the kept edits' weights say after each: norm, cosine, energy."""
    model = edited_model(journal.folder, run_steps=[])
    energy_of: dict[tuple[str, int], float] = {}
    previous: Edit | None = None
    for step in journal.kept_steps:
        edit = step.read_edit()
        model = apply(model, edit)
        places = [(delta.weight, delta.layer) for delta in edit.deltas]
        for place in places:
            if place not in energy_of:
                energy_of[place] = hyperspherical_energy(base_weight(model, *place))
        values = _weight_signals(model, energy_of)
        if previous is not None:
            values["cosine"] = abs(_cosine(previous, edit))
        previous = edit
        yield values


def _weight_signals(model: Model, energy_of: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Compute the norm of all edits and the change of the energy, the largest of the layers."""
    norms, energies = [], []
    for place, energy in energy_of.items():
        base_FD, change_FD = base_weight(model, *place), sum_of_edits(model, *place)
        norms.append(float(np.linalg.norm(change_FD) / np.linalg.norm(base_FD)))
        energies.append(abs(hyperspherical_energy(base_FD + change_FD) / energy - 1))
    return {"norm": max(norms), "hyperspherical energy": max(energies)}


def _cosine(a: Edit, b: Edit) -> float:
    """Compute the cosine of two updates over all weights that both change."""
    one, other = _changes(a), _changes(b)
    product = sum(float(np.vdot(one[place], other[place])) for place in one.keys() & other.keys())
    return product / max(a.norm * b.norm, np.finfo(float).tiny)


def _changes(edit: Edit) -> dict[tuple[str, int], np.ndarray]:
    return {(delta.weight, delta.layer): to_dense(delta) for delta in edit.deltas}


def _is_lower(unedited: Mapping[str, Any], edited: Mapping[str, Any], metric: str) -> bool:
    """Tell whether a task's accuracy is lower than the unedited model's beyond chance."""
    stderr = math.hypot(
        *(math.sqrt(each[metric] * (1 - each[metric]) / each["n"]) for each in (unedited, edited))
    )
    return unedited[metric] - edited[metric] > N_STDERR * stderr
