"""One step of a study: the edit, and all that is measured of the model that has it.

    edit -> apply -> measure -> guard -> StepRecord

The edit and what is measured of every one are in `edit_and_measure.py`; here are the guard's
judgement, what is due now and then, and the record.
"""

from typing import Any, NamedTuple

from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit
from jaxedit.edits.subjects import contradictions
from jaxedit.metrics.perplexity import Perplexity
from jaxedit.metrics.perturbation import total_relative_perturbation
from jaxedit.models.model import Model
from jaxedit.study.context import StudyContext
from jaxedit.study.edit_and_measure import Known, MeasuredEdit, Stopwatch, edit_alone
from jaxedit.study.evaluation import due_measurements, measure_due, perplexity_record
from jaxedit.study.record import StepRecord
from jaxedit.study.replay import StudyState


class StepResult(NamedTuple):
    """What a step leaves: the study's state after it, its record, and its edit if it was made."""

    state: StudyState
    record: StepRecord
    edit: Edit | None


def run_step(
    context: StudyContext,
    state: StudyState,
    known: Known,
    step: int,
    measured: MeasuredEdit | None,
) -> StepResult:
    """Make, measure and judge the edit of a step; the state changes only where it is kept.

    Args:
      context: the study's.
      state: the model and editor's state with the kept edits.
      known: what was measured and predicted before.
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
            measured, after = edit_alone(context, state, known, step, watch)
        except ValueError as error:  # cannot be edited or measured; the study goes on without it
            record = StepRecord(**asked, kept=False, error=str(error), time_s=watch.read())
            return StepResult(state, record, None)
        edited: Model | None = after.model
    else:
        after, edited = state, None
    due = due_measurements(context, step, measured.perplexity is not None)
    if edited is None and due:
        edited = apply(state.model, measured.edit)

    # The guard's judgement, and the record.
    edit_norm = measured.edit.norm
    violation = context.guard.violation(measured.perplexity, known.base, edit_norm)
    kept = not context.single and (violation is None or context.guard.action == "keep")
    total = None
    if edited is not None and not context.single:
        total = total_relative_perturbation(context.key_probe, edited)
    record = StepRecord(
        **asked,
        **_fields_of_measured(measured, known.base),
        kept=kept,
        guard_code=violation and violation.code,
        guard_reason=violation and violation.reason,
        edit_norm=edit_norm,
        edit_norm_ratio=edit_norm / context.weight_norm,
        total_relative_perturbation=total,
        **({} if edited is None else measure_due(context, edited, step, due)),
    )
    return StepResult(after if kept else state, record, measured.edit)


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


def _fields_of_measured(measured: MeasuredEdit, base: Perplexity) -> dict[str, Any]:
    """Return what a record says of an edit however it was judged."""
    return dict(
        batch_first_step=measured.batch_first_step,
        perplexity=measured.perplexity and perplexity_record(measured.perplexity, base),
        metrics=measured.metrics,
        n_requests_by_metric=measured.n_requests_by_metric,
        unedited_metrics=measured.unedited_metrics,
        continuation=measured.continuation,
        unedited_continuation=measured.unedited_continuation,
        optimisation=measured.optimisation,
        relative_perturbation=measured.relative_perturbation,
        predicted_change=measured.predicted_change,
        time_s=measured.time_s,
    )
