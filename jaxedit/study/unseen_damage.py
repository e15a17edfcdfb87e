"""Edits that a study kept unmeasured, and that take the model over the guard's limit.

Where eval.perplexity_every="auto" measures the perplexity seldom, a violation may be the fault of
an earlier edit that was not measured. Rolling back the one just made would then leave a damaged
model, and every later edit would be blamed for it. So the model is measured without the new edit;
where that is over the limit already, the edits that took it there are undone, and the new one is
made again. A study whose guard stops ends with the violation, and undoes them then.
"""

import logging
from pathlib import Path

from jaxedit.edits.apply import apply
from jaxedit.metrics.perplexity import Perplexity, perplexity
from jaxedit.models.model import Model
from jaxedit.study.chain import CHANGING
from jaxedit.study.context import StudyContext
from jaxedit.study.forecast import Forecast
from jaxedit.study.journal import Journal, Step, open_journal
from jaxedit.study.record import StepRecord
from jaxedit.study.replay import replay


def has_unmeasured(context: StudyContext, forecast: Forecast) -> bool:
    """Tell whether edits were kept since the last measurement that the guard might not keep.

    Args:
      context: the study's.
      forecast: of the records so far.
    """
    is_undoing = not context.single and context.guard.action != "keep"
    is_auto = context.evaluation.perplexity_every is None
    return is_auto and is_undoing and forecast.moved_nats > 0


def may_be_unseen(context: StudyContext, forecast: Forecast, record: StepRecord) -> bool:
    """Tell whether a violation, or an edit's error, may be the fault of one kept unmeasured.

    Args:
      context: the study's.
      forecast: of the records before.
      record: of the new edit; where the guard stops, the study ends with it as it is.
    """
    is_failure = record.guard_code is not None or record.error is not None
    return is_failure and context.guard.action == "rollback" and has_unmeasured(context, forecast)


def undo_unseen_damage(
    context: StudyContext, workdir: Path, base: Perplexity, model: Model
) -> Journal | None:
    """Undo the kept edits that were not measured and that the guard would not have kept.

    Args:
      context: the study's.
      workdir: its folder.
      base: the unedited model's perplexity.
      model: with all kept edits.

    Returns:
      The journal with the undo; None where the model is within the limit.
    """
    if not _is_over(context, base, model):
        return None
    journal = open_journal(workdir, context.run, CHANGING)
    found = _find_damaging(context, journal, base)
    if not found:  # every edit was measured and kept
        return None
    logging.getLogger("jaxedit").warning(
        "undone, since kept unmeasured and over the guard's limit: edits %s",
        ", ".join(map(str, found)),
    )
    journal.append_undo(found, "kept unmeasured, over the guard's limit")
    return open_journal(workdir, context.run, CHANGING)


def _find_damaging(context: StudyContext, journal: Journal, base: Perplexity) -> list[int]:
    """Find the unmeasured edits that take the model over the limit, behind the good ones before.

    Returns:
      Their steps; where the guard ends the study, also all that were kept after the first.
    """
    kept = journal.kept_steps
    n_known = _n_known(journal, kept)
    good = replay(context.unedited, kept[:n_known]).model
    found: list[int] = []
    for step in kept[n_known:]:
        edited = apply(good, step.read_edit())
        has_ended = found and context.guard.action == "stop"
        if has_ended or _is_over(context, base, edited):
            found.append(step.record.step)
        else:
            good = edited
    return found


def _n_known(journal: Journal, kept: list[Step]) -> int:
    """Count the kept edits up to the last one whose model was measured as it is now."""
    known = [
        i
        for i, step in enumerate(kept, start=1)
        if step.record.perplexity is not None
        and not any(each.record.was_in_model_at(step.record.step) for each in journal.steps)
    ]
    return max(known, default=0)


def _is_over(context: StudyContext, base: Perplexity, model: Model) -> bool:
    """Measure a model; tell whether it is over the guard's limit."""
    return context.guard.violation(perplexity(model, context.texts), base, 0.0) is not None
