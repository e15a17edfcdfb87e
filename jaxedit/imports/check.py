"""Does an adapter damage the model? Its base and the model with it, measured beside each other.

The verdict is the guard's, by the perplexity. The relative perturbation, which predicts damage of
an edit without running the edited model, is there where all that is changed is an edit; with
changes in the base weights there is no prediction.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxedit.edits.predicted_change import PredictedChange, predict_edit
from jaxedit.edits.request import Request
from jaxedit.imports.adapter import ImportedAdapter
from jaxedit.metrics.baseline import check_baseline
from jaxedit.metrics.divergence import kl_divergence
from jaxedit.metrics.downstream import evaluate_tasks
from jaxedit.metrics.facts import FactMetrics, average_facts, evaluate_facts
from jaxedit.metrics.perplexity import Perplexity, perplexity, prepare, scores_with_bos
from jaxedit.metrics.perturbation import read_key_probe, relative_perturbation
from jaxedit.models.model import Model
from jaxedit.models.score import PrefilledTexts
from jaxedit.models.texts import list_texts
from jaxedit.study.guard import Guard, Violation

Tasks = dict[str, dict[str, Any]]


class AdapterCheck(NamedTuple):
    """What an adapter does to a model. Pairs are (without it, with it).

    Attributes:
      perplexity: of the texts.
      kl_nats: KL(without || with) a token of the texts.
      relative_perturbation: `jaxedit.metrics.perturbation`; None: not available, since base weights
        are changed too.
      predicted_change: of the mean loss (`jaxedit.edits.predicted_change`); None: not asked for, or
        not available.
      facts: the metrics of the facts, averaged; None: not asked for.
      tasks: lm-eval's metrics; None: not asked for.
      guard: whose limits the verdict goes by.
      violation: what the guard found; None: nothing.
    """

    perplexity: tuple[Perplexity, Perplexity]
    kl_nats: float
    relative_perturbation: float | None
    predicted_change: PredictedChange | None
    facts: tuple[FactMetrics, FactMetrics] | None
    tasks: tuple[Tasks, Tasks] | None
    guard: Guard
    violation: Violation | None

    @property
    def ppl_ratio(self) -> float:
        """The perplexity with the adapter over that without it, means over the texts."""
        before, after = self.perplexity
        return after.mean / before.mean

    @property
    def is_damaging(self) -> bool:
        """Whether the guard would roll the adapter back."""
        return self.violation is not None

    @property
    def verdict(self) -> str:
        """The verdict as a sentence."""
        if self.violation is None:
            return "no damage seen"
        reason = self.violation.reason
        if self.violation.code == "ppl_ratio":
            reason = f"perplexity is {self.ppl_ratio:,.1f} times the base's"
        return f"damages the model: {reason}"


def check_adapter(
    model: Model,
    imported: ImportedAdapter,
    texts: list[str],
    requests: Sequence[Request] = (),
    tasks: Sequence[str] = (),
    *,
    limit: int | None = None,
    task_path: str | os.PathLike[str] | None = None,
    prediction_draws: int = 0,
) -> AdapterCheck:
    """Measure a model with and without an adapter, and judge the difference as the guard does.

    Args:
      model: without the adapter.
      imported: the model with it.
      texts: for perplexity, KL and relative perturbation.
      requests: facts to ask both.
      tasks: of lm-eval.
      limit: at most so many items of each task.
      task_path: a directory of task files (.yaml), beside lm-eval's own.
      prediction_draws: of labels, by which the change of the loss is predicted; 0: it is not.

    Raises:
      ValueError: as the metrics; or where the model's own perplexity is not finite.
    """
    # The layers below all changes are run once, for both models and all of these three metrics.
    texts, bos = list_texts(texts, "a check"), scores_with_bos(model)
    prepared = prepare(model, texts, bos, start_layer=_lowest_layer(imported))
    before = check_baseline(model, perplexity(model, prepared), texts)
    after = perplexity(imported.model, texts if imported.added_to_base else prepared, bos)
    kl_nats = kl_divergence(imported.model, model, prepared)
    perturbation = _perturbation(model, imported, prepared)
    predicted = _prediction(model, imported, prepared, prediction_draws)

    # What is asked besides, of both.
    models = model, imported.model
    facts = answers = None
    if requests:
        found = [average_facts(evaluate_facts(each, list(requests))) for each in models]
        facts = found[0], found[1]
    if tasks:
        scores = [
            evaluate_tasks(each, list(tasks), limit=limit, task_path=task_path) for each in models
        ]
        answers = scores[0], scores[1]

    guard = Guard()
    norm = math.sqrt(sum(weight.norm**2 for weight in imported.weights))
    return AdapterCheck(
        perplexity=(before, after),
        kl_nats=kl_nats,
        relative_perturbation=perturbation,
        predicted_change=predicted,
        facts=facts,
        tasks=answers,
        guard=guard,
        violation=guard.violation(after, before, norm),
    )


def _prediction(
    model: Model, imported: ImportedAdapter, texts: PrefilledTexts, n_draws: int
) -> PredictedChange | None:
    """Predict the change of the loss; None where base weights are changed too, or without draws."""
    if not n_draws or imported.edit is None or imported.added_to_base:
        return None
    return predict_edit(model, texts, imported.edit, n_draws)


def _lowest_layer(imported: ImportedAdapter) -> int:
    """Return the lowest layer that an edit changes; 0 where base weights are changed."""
    if imported.edit is None or imported.added_to_base:
        return 0
    return min(delta.layer for delta in imported.edit.deltas)


def _perturbation(model: Model, imported: ImportedAdapter, texts: PrefilledTexts) -> float | None:
    """Compute the relative perturbation; None where base weights are changed too."""
    if imported.edit is None or imported.added_to_base:
        return None
    layers = tuple(sorted({delta.layer for delta in imported.edit.deltas}))
    weights = {delta.weight for delta in imported.edit.deltas}
    probe = read_key_probe(model, texts, layers, weights)
    return relative_perturbation(probe, imported.edit, model)
