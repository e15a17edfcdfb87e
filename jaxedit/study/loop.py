"""A study: a fold of edits over a model that is scored after every step.

    edit -> apply -> measure -> guard (keep, roll back, stop) -> journal

A rejected edit leaves neither weights nor state. Resuming replays the journal's kept edits and
gives the same bits as a study that was never interrupted.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxedit.compilation_cache import forget_programs_if_many
from jaxedit.distributed import check_first_has, own_workdir
from jaxedit.edits.edit import edit_to_arrays
from jaxedit.metrics.baseline import check_baseline
from jaxedit.metrics.facts import average_facts, evaluate_facts
from jaxedit.metrics.perplexity import Perplexity, perplexity
from jaxedit.metrics.retention import evaluate_retention
from jaxedit.study.chain import CHANGING
from jaxedit.study.context import StudyContext, build_context
from jaxedit.study.edit_and_measure import Known, MeasuredEdit, edit_batch, read_gradients
from jaxedit.study.evaluation import baseline_record, log_without_bos, perplexity_record
from jaxedit.study.forecast import Forecast, update_forecast
from jaxedit.study.guard import ends_study
from jaxedit.study.journal import Journal, check_workdir, open_journal, read_journal
from jaxedit.study.record import StepRecord
from jaxedit.study.replay import StudyState, read_baseline, replay
from jaxedit.study.resume import check_steps, journalled_edit, n_steps_to_keep
from jaxedit.study.retained import read_retained, write_retained
from jaxedit.study.step import run_step
from jaxedit.study.unseen_damage import has_unmeasured, may_be_unseen, undo_unseen_damage

OnStep = Callable[[StepRecord, int], None]  # (a step's record, how many steps there will be)

STEPS_A_LOOK = 16  # between two looks at how many compiled programs are held


class Progress(NamedTuple):
    """Where a study stands.

    Attributes:
      state: the model and the editor's state with the kept edits.
      known: what was measured and predicted.
      kept: the steps of the kept edits.
    """

    state: StudyState
    known: Known
    kept: list[int]


def run_study(
    config: ConfigDict, workdir: Path, on_step: OnStep = lambda record, total: None
) -> Path:
    """Run or continue a study; return its folder.

    Args:
      config: as `jaxedit.study.config.default_config`.
      workdir: new, or a study's with the same configuration (n_facts may have grown, the mesh be
        another), which is then continued.
      on_step: called with each step's record, also those found in the journal, and the number of
        steps there will be.

    Raises:
      ValueError: on a configuration, model, facts or texts that cannot be used, a folder of
        another study, or one that another process writes to.
      OSError: where a step cannot be written; all steps before are whole.
    """
    context = build_context(config, workdir)
    check_workdir(workdir)
    with own_workdir(workdir):
        _run_steps(context, workdir, on_step)
    return workdir


def _run_steps(context: StudyContext, workdir: Path, on_step: OnStep) -> None:
    """Make the steps of a study that its journal lacks."""
    # What of the study is in the journal: without a batch that was cut short.
    journal = open_journal(workdir, context.run, CHANGING, most_steps=len(context.steps))
    total = len(context.batches)
    check_steps(context, journal)
    check_first_has(len(journal.steps), f"{workdir} changed while this run began")
    journal = journal.truncate(1 + n_steps_to_keep(context, journal)) if journal.steps else journal
    for step in journal.steps:
        on_step(step.record, total)
        if context.evaluation.judge is not None:
            context.evaluation.judge.remember(step.record.generated_answers or [])
    base = _baseline(context, journal, lambda record: on_step(record, total))
    now = _progress(context, journal, base)

    # The steps that are left; single edits are made and measured a batch at a time.
    n_done = max(len(journal.steps) - 1, 0)
    is_over = n_done > 0 and ends_study(context.guard.action, journal.steps[-1].record)
    unedited = perplexity_record(base, base)
    measured: dict[int, MeasuredEdit] = {}
    n_good = 0  # kept edits when the model was last found within the limit, beside a violation
    for number in () if is_over else context.steps[n_done:]:
        if context.single_batch_size > 1 and (number - 1) % context.single_batch_size == 0:
            measured = edit_batch(context, now.state, now.known, number)
        state, record, edit = run_step(context, now.state, now.known, number, measured.get(number))
        if may_be_unseen(context, now.known.forecast, record) and n_good < len(now.kept):
            mended = undo_unseen_damage(context, workdir, base, now.state.model)
            if mended is not None:  # the edit was made on the damaged model: again
                journal, now = mended, _progress(context, mended, base)
                state, record, edit = run_step(context, now.state, now.known, number, None)
            n_good = len(now.kept)
        forecast = update_forecast(now.known.forecast, record, unedited, context.guard)
        known = now.known._replace(forecast=forecast)
        if forecast.gradients_step == number:  # the edits have moved the model away from the old
            known = known._replace(gradients=read_gradients(context, base, state.model))
        now = Progress(state, known, [*now.kept, number] if record.kept else now.kept)
        record = _write_step(context, journal, state, record, edit, now.kept)
        on_step(record, total)
        if number % STEPS_A_LOOK == 0:
            forget_programs_if_many()
        if ends_study(context.guard.action, record):
            break

    # What was kept behind the last measurement, e.g. where the last edit could not be made.
    if has_unmeasured(context, now.known.forecast) and n_good < len(now.kept):
        mended = undo_unseen_damage(context, workdir, base, now.state.model)
        now = now if mended is None else _progress(context, mended, base)
    if not context.single:
        _write_retained(context, now.state, workdir)


def _baseline(
    context: StudyContext, journal: Journal, on_baseline: Callable[[StepRecord], None]
) -> Perplexity:
    """Return the unedited model's perplexity: the journal's, or measured and journalled now."""
    if journal.steps:
        return check_baseline(context.unedited, read_baseline(journal.steps[0]), context.texts)
    score = perplexity(context.unedited, context.texts)
    base = check_baseline(context.unedited, score, context.texts)
    record = baseline_record(context, base)
    journal.append(record, {"nll_nats": base.nll_nats, "n_tokens": base.n_tokens}, {})
    on_baseline(record)
    if context.run["config"]["eval"]["bos"]:
        log_without_bos(context)
    return base


def _progress(context: StudyContext, journal: Journal, base: Perplexity) -> Progress:
    """Return where a study stands after the steps in its journal."""
    state = StudyState(context.unedited, context.initial_state)
    if journal.steps and not context.single:
        model, editor_state = state
        state = replay(model, journal.steps[1:], editor_state, context.editor.restore)
    kept = journal.kept_numbers
    return Progress(state, _known(context, journal, base), kept)


def _known(context: StudyContext, journal: Journal, base: Perplexity) -> Known:
    """Return what a study knows after the steps in its journal."""
    # Gradients are read again only where the journal holds every edit by itself.
    is_auto = context.evaluation.perplexity_every is None
    refreshes = is_auto and not context.single and context.journal_dense_every == 1
    forecast = Forecast(refreshes=refreshes, fits=not context.single)
    unedited = perplexity_record(base, base)
    for line in journal.lines:
        forecast = update_forecast(forecast, line.record, unedited, context.guard)
    model = None
    if forecast.gradients_step:  # they are those of the model that the study had then
        steps = [step for step in journal.steps[1:] if step.record.step <= forecast.gradients_step]
        model = replay(context.unedited, steps).model
    return Known(base, forecast, read_gradients(context, base, model))


def _write_step(
    context: StudyContext,
    journal: Journal,
    state: StudyState,
    record: StepRecord,
    edit,
    kept: list[int],
) -> StepRecord:
    """Journal a step, with its retention where that is due; return its whole record."""
    written, is_snapshot = journalled_edit(context, state, edit, record)
    every = context.evaluation.retention_every
    due = every and record.step % every == 0
    record = dataclasses.replace(
        record,
        snapshot=is_snapshot or None,
        retention=evaluate_retention(state.model, context.batches, kept) if due else None,
    )
    journal.append(record, *(edit_to_arrays(written) if written else ({}, {})))
    return record


def _write_retained(context: StudyContext, state: StudyState, workdir: Path) -> None:
    """Write how the kept edits' facts hold in the last model, unless that was done before."""
    journal = read_journal(workdir)  # with the steps that were made now
    if read_retained(journal, older=False) is not None:
        return
    written = [context.batches[step.record.step - 1] for step in journal.kept_steps]
    facts = [
        average_facts(evaluate_facts(state.model, requests, prefix=context.prefix))
        for requests in written
    ]
    write_retained(journal, facts)
