"""Edits made and measured: one on the model of a sequence, or several single ones together.

Every function here that measures is given the model *with* the edit, or says that it is given
edits beside a model that lacks them (`edit_batch`).
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit
from jaxedit.edits.per_row import all_low_rank, with_edit_tokenizer, with_per_row_edits
from jaxedit.edits.predicted_change import PredictedChange, predict_change, predict_total_change
from jaxedit.edits.request import Request
from jaxedit.metrics.facts import FactMetrics, average_facts, count_facts, evaluate_facts
from jaxedit.metrics.perplexity import Perplexity, perplexity, perplexity_each
from jaxedit.metrics.perturbation import relative_perturbation
from jaxedit.models.loss_probe import LossProbe, read_loss_probe
from jaxedit.models.model import Model
from jaxedit.rounding import round_up
from jaxedit.study.context import StudyContext
from jaxedit.study.evaluation import ANSWER_TOKENS, continuations, needs_perplexity
from jaxedit.study.forecast import Forecast, describe_change
from jaxedit.study.replay import StudyState


class MeasuredEdit(NamedTuple):
    """An edit and what is measured of the model with it at every step."""

    edit: Edit
    optimisation: dict[str, float]
    relative_perturbation: float
    predicted_change: dict[str, float] | None
    unedited_metrics: FactMetrics
    metrics: FactMetrics
    unedited_continuation: str
    continuation: str
    perplexity: Perplexity | None
    time_s: dict[str, float]
    batch_first_step: int | None = None
    n_requests_by_metric: dict[str, int] | None = None


class Gradients(NamedTuple):
    """By which changes of the loss are predicted.

    Attributes:
      probe: of the study's texts.
      model: that they were read of.
      score: its perplexity.
    """

    probe: LossProbe
    model: Model
    score: Perplexity


class Known(NamedTuple):
    """What a study knows before an edit.

    Attributes:
      base: the unedited model's perplexity.
      forecast: of the records so far.
      gradients: of the unedited model, or of a later one; None: nothing is predicted.
    """

    base: Perplexity
    forecast: Forecast
    gradients: Gradients | None


def read_gradients(
    context: StudyContext, base: Perplexity, model: Model | None
) -> Gradients | None:
    """Read the gradients of a model with edits; None where nothing is predicted.

    Args:
      context: the study's.
      base: the unedited model's perplexity.
      model: with edits; None: the unedited one, whose gradients the context has.
    """
    probe = context.loss_probe
    if probe is None:
        return None
    if model is None:
        return Gradients(probe, context.unedited, base)
    n_draws = len(probe.gradient_of[probe.places[0]]) - 1
    again = read_loss_probe(model, context.texts, probe.places, n_draws, split=True)
    return Gradients(again, model, perplexity(model, context.texts))


class Stopwatch:
    """Seconds of each phase of a step."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.laps[phase] = now - self.last
        self.last = now

    def read(self, n_edits: int = 1) -> dict[str, float]:
        """Return the seconds a phase and edit so far."""
        return {phase: round(time_s / n_edits, 4) for phase, time_s in self.laps.items()}


def edit_alone(
    context: StudyContext, state: StudyState, known: Known, step: int, watch: Stopwatch
) -> tuple[MeasuredEdit, StudyState]:
    """Make the edit of a step on the model and measure it; return the state with it.

    Args:
      context: the study's.
      state: the model and editor's state before the edit.
      known: what was measured and predicted before.
      step: its number.
      watch: takes the seconds of each phase, also where an error ends them.

    Raises:
      ValueError: where a request cannot be edited or measured.
    """
    # The edit, by the consistent editor where the screening asks for it.
    batch, screening = context.batches[step - 1], context.screening
    editor = context.editor
    if step in screening.hard and screening.instead is not None:
        editor = screening.instead
    edit, editor_state, info = editor.edit(state.model, batch, state.editor_state)
    watch.lap("edit")
    perturbation = relative_perturbation(context.key_probe, edit, context.unedited)
    watch.lap("perturbation")
    edited = apply(state.model, edit)
    watch.lap("apply")
    predicted = None
    if known.gradients is not None:
        if context.single:
            change = predict_change(known.gradients.probe, edit)
        else:  # by all kept edits with it
            change = predict_total_change(known.gradients.probe, known.gradients.model, edited)
        predicted = _describe(context, known, change)
        watch.lap("prediction")

    # Its facts, its continuation and its perplexity, in the unedited model and in this one.
    models = context.unedited, edited
    facts = [evaluate_facts(m, batch, prefix=context.prefix) for m in models]
    metrics = [average_facts(each) for each in facts]
    watch.lap("facts")
    prompt = batch[0].prompt_text
    answers = [continuations(model, [prompt], ANSWER_TOKENS)[0] for model in models]
    watch.lap("generate")
    is_due = needs_perplexity(context, step, known.forecast, perturbation, predicted)
    score = perplexity(edited, context.texts) if is_due else None
    watch.lap("perplexity")
    measured = MeasuredEdit(
        edit=edit,
        optimisation=info,
        relative_perturbation=perturbation,
        predicted_change=predicted,
        unedited_metrics=metrics[0],
        metrics=metrics[1],
        n_requests_by_metric=count_facts(facts[1]) or None,
        unedited_continuation=answers[0],
        continuation=answers[1],
        perplexity=score,
        time_s=watch.read(),
    )
    return measured, StudyState(edited, editor_state)


def edit_batch(
    context: StudyContext, state: StudyState, known: Known, first_step: int
) -> dict[int, MeasuredEdit]:
    """Make and measure single edits from `first_step` on together, each on the same model.

    Each edit acts in its own rows of a batch; no edited model is written out. Nothing is returned
    where that cannot be done: a request cannot be edited, the edits are not low-rank, or some are
    made by another editor. They are then made one by one, and it shows whose fault it is.
    """
    model, unedited = state.model, context.unedited
    end = min(first_step + context.single_batch_size, len(context.batches) + 1)
    steps = list(range(first_step, end))
    requests = [request for step in steps for request in context.batches[step - 1]]
    if not context.screening.hard.isdisjoint(steps):
        return {}
    watch = Stopwatch()
    try:
        # All edits, and their relative perturbations.
        assert context.editor.edit_each is not None
        made = context.editor.edit_each(model, requests, state.editor_state)
        edits = [edit for edit, _ in made]
        watch.lap("edit")
        if not all_low_rank(edits):
            return {}
        probe = context.key_probe
        perturbations = [relative_perturbation(probe, edit, unedited) for edit in edits]
        watch.lap("perturbation")
        predicted = _predict_each(context, known, edits)
        watch.lap("prediction")

        before, after = _ask_each(context, model, edits, requests)
        watch.lap("facts")
        prompts = [request.prompt_text for request in requests]
        said_before = continuations(unedited, prompts, ANSWER_TOKENS)
        said_after = _continue_each(with_edit_tokenizer(model, edits), edits, prompts)
        watch.lap("generate")
    except ValueError:
        return {}

    scores = _score_each(context, known, edits, first_step, perturbations, predicted)
    watch.lap("perplexity")
    time_s = watch.read(len(edits))
    return {
        step: MeasuredEdit(
            edit=edits[i],
            optimisation=made[i][1],
            relative_perturbation=perturbations[i],
            predicted_change=predicted[i],
            unedited_metrics=before[i],
            metrics=after[i],
            unedited_continuation=said_before[i],
            continuation=said_after[i],
            perplexity=scores.get(i),
            time_s=time_s,
            batch_first_step=first_step,
        )
        for i, step in enumerate(steps)
    }


def _predict_each(
    context: StudyContext, known: Known, edits: list[Edit]
) -> Sequence[dict[str, float] | None]:
    """Predict what each edit changes of the loss, where that is asked for."""
    if known.gradients is None:
        return [None] * len(edits)
    changes = [predict_change(known.gradients.probe, edit) for edit in edits]
    return [_describe(context, known, change) for change in changes]


def _describe(context: StudyContext, known: Known, change: PredictedChange) -> dict[str, float]:
    """Return what the journal says of a predicted change."""
    assert known.gradients is not None
    return describe_change(known.forecast, change, known.gradients.score, known.base, context.guard)


def _score_each(
    context: StudyContext,
    known: Known,
    edits: list[Edit],
    first_step: int,
    perturbations: list[float],
    predicted: Sequence[dict[str, float] | None],
) -> dict[int, Perplexity]:
    """Measure the perplexity of each edit where it is due; return those by the edit's place."""
    due = [
        i
        for i, predictions in enumerate(zip(perturbations, predicted, strict=True))
        if needs_perplexity(context, first_step + i, known.forecast, *predictions)
    ]
    if not due:
        return {}
    scored = perplexity_each(context.unedited, context.texts, [edits[i] for i in due])
    return dict(zip(due, scored, strict=True))


def _ask_each(
    context: StudyContext, model: Model, edits: list[Edit], requests: list[Request]
) -> tuple[list[FactMetrics], list[FactMetrics]]:
    """Ask each request before and after, with its own edit."""
    asked = with_edit_tokenizer(model, edits)
    before = evaluate_facts(context.unedited, requests, prefix=context.prefix)
    return before, evaluate_facts(asked, requests, edits, context.prefix)


def _continue_each(model: Model, edits: list[Edit], prompts: list[str]) -> list[str]:
    """Continue each prompt with its own edit; rows that fill the batch up repeat the last edit."""
    n_rows = round_up(len(edits), model.mesh.shape["data"])
    edit_B = np.minimum(np.arange(n_rows), len(edits) - 1)
    return continuations(with_per_row_edits(model, edits, edit_B), prompts, ANSWER_TOKENS)
