"""One step of a study: the edit, and all that is measured of the model that has it.

    edit -> apply -> measure -> guard -> StepRecord

Every function here that measures is given the model *with* the edit, or says that it is given
edits beside a model that lacks them (`edit_batch`).
"""

import time
from typing import Any, NamedTuple

import numpy as np

from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit
from jaxedit.edits.per_row import all_low_rank, with_edit_tokenizer, with_per_row_edits
from jaxedit.edits.predicted_change import predict_change, predict_total_change
from jaxedit.edits.subjects import contradictions
from jaxedit.metrics.facts import FactMetrics, average_facts, evaluate_facts
from jaxedit.metrics.perplexity import Perplexity, perplexity, perplexity_each
from jaxedit.metrics.perturbation import relative_perturbation, total_relative_perturbation
from jaxedit.models.model import Model
from jaxedit.rounding import round_up
from jaxedit.study.context import StudyContext
from jaxedit.study.evaluation import (
    ANSWER_TOKENS,
    continuations,
    due_measurements,
    measure_due,
    needs_perplexity,
    perplexity_record,
)
from jaxedit.study.record import StepRecord
from jaxedit.study.replay import StudyState


class Measured(NamedTuple):
    """An edit and what is measured of the model with it at every step."""

    edit: Edit
    optimisation: dict[str, float]
    relative_perturbation: float
    unedited_metrics: FactMetrics
    metrics: FactMetrics
    unedited_continuation: str
    continuation: str
    perplexity: Perplexity | None
    time_s: dict[str, float]
    batch_first_step: int | None = None


class StepResult(NamedTuple):
    """What a step leaves: the study's state after it, its record, and its edit if it was made."""

    state: StudyState
    record: StepRecord
    edit: Edit | None


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


def run_step(
    context: StudyContext,
    state: StudyState,
    base: Perplexity,
    step: int,
    measured: Measured | None,
) -> StepResult:
    """Make, measure and judge the edit of a step; the state changes only where it is kept.

    Args:
      context: the study's.
      state: the model and editor's state with the kept edits.
      base: the unedited model's perplexity.
      step: its number.
      measured: the edit with what was measured, where that was done together with others.
    """
    asked = _fields_before_edit(context, step)

    # A hard case that the screening skips leaves nothing but its record.
    if step in context.screening.hard and context.screening.instead is None:
        record = StepRecord(**asked, kept=False, skipped="screening", time_s={})
        return StepResult(state, record, None)

    # The edit, and the model with it; in a batch it was made before, on the same model.
    if measured is None:
        watch = Stopwatch()
        try:
            measured, after = edit_alone(context, state, step, watch)
        except ValueError as error:  # cannot be edited or measured; the study goes on without it
            record = StepRecord(**asked, kept=False, error=str(error), time_s=watch.read())
            return StepResult(state, record, None)
        edited: Model | None = after.model
    else:
        after, edited = state, None
    due = due_measurements(context, step)
    if edited is None and due:
        edited = apply(state.model, measured.edit)

    # The guard's judgement, and the record.
    edit_norm = measured.edit.norm
    violation = context.guard.violation(measured.perplexity, base, edit_norm)
    kept = not context.single and (violation is None or context.guard.action == "keep")
    total = None
    if edited is not None and not context.single:
        total = total_relative_perturbation(context.key_probe, edited)
    record = StepRecord(
        **asked,
        **_fields_of_measured(measured, base),
        kept=kept,
        guard_code=violation and violation.code,
        guard_reason=violation and violation.reason,
        edit_norm=edit_norm,
        edit_norm_ratio=edit_norm / context.weight_norm,
        total_relative_perturbation=total,
        predicted_change=_predict_change(context, measured.edit, edited),
        **({} if edited is None else measure_due(context, edited, step, due)),
    )
    return StepResult(after if kept else state, record, measured.edit)


def _predict_change(
    context: StudyContext, edit: Edit, edited: Model | None
) -> dict[str, float] | None:
    """Predict the change of the loss: by this edit, or in a sequence by all kept ones with it."""
    probe = context.loss_probe
    if probe is None:
        return None
    if context.single or edited is None:
        found = predict_change(probe, edit)
    else:
        found = predict_total_change(probe, context.unedited, edited)
    return {
        "mean_nats": found.mean_nats(),
        "stderr_nats": found.stderr_nats(),
        "first_nats": found.mean_nats(0.0),
        "second_nats": found.mean_nats(1.0) - found.mean_nats(0.0),
    }


def _fields_before_edit(context: StudyContext, step: int) -> dict[str, Any]:
    """Return what a record says before the edit is made: the first request, the prediction."""
    batch = context.batches[step - 1]
    return dict(
        step=step,
        case_id=batch[0].case_id,
        prompt=batch[0].prompt,
        subject=batch[0].subject,
        target_new=batch[0].target_new,
        target_true=batch[0].target_true,
        leading_space=batch[0].leading_space,
        n_requests=len(batch),
        contradictions=contradictions(batch) or None,
        predicted_perturbation=context.screening.predicted.get(step),
    )


def _fields_of_measured(measured: Measured, base: Perplexity) -> dict[str, Any]:
    """Return what a record says of an edit however it was judged."""
    return dict(
        batch_first_step=measured.batch_first_step,
        perplexity=measured.perplexity and perplexity_record(measured.perplexity, base),
        metrics=measured.metrics,
        unedited_metrics=measured.unedited_metrics,
        continuation=measured.continuation,
        unedited_continuation=measured.unedited_continuation,
        optimisation=measured.optimisation,
        relative_perturbation=measured.relative_perturbation,
        time_s=measured.time_s,
    )


def edit_alone(
    context: StudyContext, state: StudyState, step: int, watch: Stopwatch
) -> tuple[Measured, StudyState]:
    """Make the edit of a step on the model and measure it; return the state with it.

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

    # Its facts, its continuation and its perplexity, in the unedited model and in this one.
    models = context.unedited, edited
    metrics = [average_facts(evaluate_facts(m, batch, prefix=context.prefix)) for m in models]
    watch.lap("facts")
    prompt = batch[0].prompt_text
    answers = [continuations(model, [prompt], ANSWER_TOKENS)[0] for model in models]
    watch.lap("generate")
    is_due = needs_perplexity(context, step, perturbation)
    score = perplexity(edited, context.texts) if is_due else None
    watch.lap("perplexity")
    measured = Measured(
        edit=edit,
        optimisation=info,
        relative_perturbation=perturbation,
        unedited_metrics=metrics[0],
        metrics=metrics[1],
        unedited_continuation=answers[0],
        continuation=answers[1],
        perplexity=score,
        time_s=watch.read(),
    )
    return measured, StudyState(edited, editor_state)


def edit_batch(context: StudyContext, state: StudyState, first_step: int) -> dict[int, Measured]:
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

        # Facts before and after, each request asked with its own edit.
        asked = with_edit_tokenizer(model, edits)
        before = evaluate_facts(unedited, requests, prefix=context.prefix)
        after = evaluate_facts(asked, requests, edits, context.prefix)
        watch.lap("facts")

        prompts = [request.prompt_text for request in requests]
        said_before = continuations(unedited, prompts, ANSWER_TOKENS)
        said_after = _continue_each(asked, edits, prompts)
        watch.lap("generate")
    except ValueError:
        return {}

    # The perplexity of each edit where it is due.
    due = [i for i, step in enumerate(steps) if needs_perplexity(context, step, perturbations[i])]
    scored = perplexity_each(model, context.texts, [edits[i] for i in due]) if due else []
    scores = dict(zip(due, scored, strict=True))
    watch.lap("perplexity")
    time_s = watch.read(len(edits))
    return {
        step: Measured(
            edit=edits[i],
            optimisation=made[i][1],
            relative_perturbation=perturbations[i],
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


def _continue_each(model: Model, edits: list[Edit], prompts: list[str]) -> list[str]:
    """Continue each prompt with its own edit; rows that fill the batch up repeat the last edit."""
    n_rows = round_up(len(edits), model.mesh.shape["data"])
    edit_B = np.minimum(np.arange(n_rows), len(edits) - 1)
    return continuations(with_per_row_edits(model, edits, edit_B), prompts, ANSWER_TOKENS)
