"""Edits of a study taken out again: a line of its journal says so, and nothing is erased.

The model that the journal describes is summed anew without them (`jaxedit.study.replay`), and so is
the editor's state where the study goes on: both are bit for bit those of a study that never kept
these edits. Edits made later stay as they are, though they were optimised on a model that had the
undone ones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxedit.files import exclusive_lock
from jaxedit.study.journal import Journal, find_step, open_journal, read_journal
from jaxedit.study.record import StepRecord


class Undone(NamedTuple):
    """An edit that was taken out, and the kept edits that were optimised on top of it."""

    step: int
    request_summary: str
    later_steps: list[int]


def undo_steps(folder: Path, numbers: Sequence[int]) -> list[Undone]:
    """Take edits out of a study's model for good, by one line at the end of its journal.

    Args:
      folder: the study's work directory.
      numbers: the edits' steps.

    Raises:
      ValueError: where the folder is no study's or another process writes to it, its journal holds
        no edit by itself, or an edit is not there, was not kept or was undone before. Nothing is
        undone then.
      OSError: where the line cannot be written.
    """
    run = read_journal(folder).run
    with exclusive_lock(folder):
        journal = open_journal(folder, run)
        _check_undoable(journal)
        chosen = [_kept_record(journal, number) for number in sorted(set(numbers))]
        journal.append_undo([record.step for record in chosen])

    # Which of the edits that stay were made after each.
    taken_out = {record.step for record in chosen}
    kept = journal.kept_numbers
    staying = [number for number in kept if number not in taken_out]
    return [
        Undone(
            record.step,
            record.request_summary,
            [number for number in staying if number > record.step],
        )
        for record in chosen
    ]


def _check_undoable(journal: Journal) -> None:
    """Raise a ValueError where a study's journal holds no edit that a model keeps by itself."""
    config = journal.run["config"]
    if config["mode"] == "single":
        raise ValueError(
            f"{journal.folder} is a study of single edits, each made on the unedited model: none "
            "is kept, and there is nothing to undo"
        )
    every = config["journal_dense_every"]
    if every > 1:
        raise ValueError(
            f"{journal.folder} holds the weights after every {every} edits, and no edit by itself: "
            "none can be taken out. A study with journal_dense_every=1 can undo its edits"
        )


def _kept_record(journal: Journal, number: int) -> StepRecord:
    """Find the record of a kept edit.

    Raises:
      ValueError: where it is not there, was not kept, or was undone before.
    """
    record = find_step(journal, number).record
    if record.undone_after is not None:
        raise ValueError(
            f"edit {number} of {journal.folder} was undone before, after edit {record.undone_after}"
        )
    if not record.kept:
        why = record.error or record.skipped or record.guard_reason
        raise ValueError(
            f"edit {number} of {journal.folder} was not kept ({why}): the model does not have it"
        )
    return record
