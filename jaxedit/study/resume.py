"""What of a study is journalled so that it can go on, and from where it goes on."""

import dataclasses
from typing import NamedTuple

from jaxedit.edits.edit import Dense, Edit, make_edit
from jaxedit.files import shorten_json
from jaxedit.mesh import to_host
from jaxedit.study.context import StudyContext
from jaxedit.study.guard import ends_study
from jaxedit.study.journal import Journal
from jaxedit.study.journal_end import FILE
from jaxedit.study.record import StepRecord
from jaxedit.study.replay import StudyState


class JournalledEdit(NamedTuple):
    """What the journal holds of a step: an edit (None: nothing), and whether it is a snapshot."""

    edit: Edit | None
    is_snapshot: bool


def journalled_edit(
    context: StudyContext, state: StudyState, edit: Edit | None, record: StepRecord
) -> JournalledEdit:
    """Return what the journal gets of a step.

    With journal_dense_every = k > 1 that is what the editor's state learnt and, every k edits and
    with the study's last one, a snapshot: the whole change of every layer since the unedited model.
    The weights between two snapshots are in no file: a study that was interrupted there does these
    steps again, with the same result.
    """
    every = context.journal_dense_every
    if every == 1:
        return JournalledEdit(edit, False)
    memory = edit.memory if edit else {}
    is_last = record.step == len(context.batches) or ends_study(context.guard.action, record)
    if record.step % every and not is_last:
        return JournalledEdit(make_edit(context.unedited, [], memory), False)
    overlay = state.model.overlay
    deltas = []
    for weight, slot_L in overlay.slot.items():
        for layer, slot in enumerate(slot_L):
            if slot >= 0:
                deltas.append(Dense(weight, layer, to_host(overlay.delta[weight][slot])))
    history = state.model.metadata.history
    anchor = next((made.anchor for made in history if made.anchor), None)
    snapshot = dataclasses.replace(make_edit(context.unedited, deltas, memory), anchor=anchor)
    return JournalledEdit(snapshot, True)


def n_steps_to_keep(context: StudyContext, journal: Journal) -> int:
    """Count the edits of a journal that a study goes on from.

    Those up to the last snapshot, or without the batch that was not finished.
    """
    n_done = len(journal.steps) - 1
    if context.journal_dense_every > 1:
        return journal.last_snapshot
    if n_done == len(context.steps) or ends_study(context.guard.action, journal.steps[-1].record):
        return n_done
    return n_done - n_done % context.single_batch_size


def check_steps(context: StudyContext, journal: Journal) -> None:
    """Check that a journal's steps are those of the study, in its order, and of its facts.

    Raises:
      ValueError: where a line is of another step or fact.
    """
    place = journal.folder / FILE
    for expected, step in zip(context.steps, journal.steps[1:], strict=False):
        record = step.record
        if record.step != expected:
            raise ValueError(
                f"{place} has step {record.step} where the study's next one is {expected}: lines "
                "were lost or exchanged; restore it from a copy"
            )
        request = context.batches[expected - 1][0]
        for name in ("prompt", "subject", "target_new"):
            found, own = getattr(record, name), getattr(request, name)
            if found != own:
                raise ValueError(
                    f"{place}: step {expected} has the {name} {shorten_json(found)}, the study's "
                    f"fact has {shorten_json(own)}: a line of another study; restore it from a copy"
                )
