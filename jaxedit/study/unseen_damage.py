"""Edits that a study kept unmeasured, and that take the model over the guard's limit.

Where the perplexity is measured seldom, a violation may be the fault of an earlier edit that was
not measured. Rolling back the one just made would then leave a damaged model, and every later edit
would be blamed for it.
"""

from jaxedit.edits.apply import apply
from jaxedit.metrics.perplexity import Perplexity, perplexity
from jaxedit.models.model import Model
from jaxedit.study.context import StudyContext
from jaxedit.study.journal import Journal, Step
from jaxedit.study.replay import replay


def find_unseen_damage(
    context: StudyContext, journal: Journal, base: Perplexity, model: Model
) -> list[int]:
    """Find the kept edits that were not measured and that the guard would not have kept.

    The model is measured; where it is over the limit, so is what it was after each edit that was
    kept since the last measurement, without those that are found.

    Args:
      context: the study's.
      journal: as it is now.
      base: the unedited model's perplexity.
      model: with all kept edits.

    Returns:
      Their steps; where the guard ends the study, also of all that were kept after the first.
    """

    def is_over(model: Model) -> bool:
        return context.guard.violation(perplexity(model, context.texts), base, 0.0) is not None

    if not is_over(model):
        return []
    kept = [step for step in journal.steps[1:] if step.record.kept]
    n_known = _n_known(journal, kept)
    good = replay(context.unedited, kept[:n_known]).model
    found: list[int] = []
    for step in kept[n_known:]:
        edited = apply(good, step.read_edit())
        is_ended = found and context.guard.action == "stop"
        if is_ended or is_over(edited):
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
        and not any(each.record.was_undone_behind(step.record.step) for each in journal.steps)
    ]
    return max(known, default=0)
