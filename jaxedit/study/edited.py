"""A study's model again: the unedited one of its configuration, with edits from its journal."""

from pathlib import Path

import jaxedit
from jaxedit.edits.edit import Edit, apply, rebuild
from jaxedit.edits.journal import Journal, Step, read_edit, read_journal
from jaxedit.models.model import Model


def edited_model(folder: Path, steps: list[int] | None = None, after: int | None = None) -> Model:
    """The model that a study had, or one with some of its edits.

    Args:
      folder: the study's.
      steps: the edits to apply, in this order, kept ones or not; None: the kept ones, as the study applied them.
      after: without steps, the model after this step; None: after the last.

    Raises:
      ValueError: where the folder is no study's, a step is not there or holds no edit, the model has changed, or the model
        after a step lies between two snapshots.
    """
    journal = read_journal(folder)
    config = journal.run["config"]
    model = jaxedit.load(config["model"], mesh=config["mesh"], dtype=config["dtype"])
    if model.fingerprint != journal.run["model_fingerprint"]:
        raise ValueError(f"{config['model']} is not the model that {folder} edited: its weights are others now")
    by_number = {step.record["step"]: step for step in journal.steps[1:]}
    for number in [*(steps or ()), *([] if after is None else [after])]:
        if number not in by_number:
            raise ValueError(f"{folder} has no edit {number}; it has 1 to {len(by_number)}")
    whole = config["snapshot_every"] > 1
    if steps is not None:
        if whole:
            raise ValueError(f"{folder} holds the weights after every {config['snapshot_every']} edits, and no edit by itself")
        for number in steps:
            model = apply(model, _edit(journal, by_number[number]))
        return model
    last = len(by_number) if after is None else after
    if whole and after is not None and not by_number[last].record.get("snapshot"):
        raise ValueError(f"{folder} holds the weights after every {config['snapshot_every']} edits only, not after {after}")
    for number in range(1, last + 1):
        record = by_number[number].record
        if record.get("snapshot"):
            model = rebuild(model, [_edit(journal, by_number[number])])
        elif record["kept"] and not whole:
            model = apply(model, _edit(journal, by_number[number]))
    return model


def _edit(journal: Journal, step: Step) -> Edit:
    made = read_edit(step.arrays) if step.arrays and ("error" not in step.record or step.record.get("snapshot")) else None
    if made is None or not made.deltas:
        said = step.record.get("error", "the journal does not hold it")
        raise ValueError(f"edit {step.record['step']} of {journal.folder} was not made: {said}")
    return made
