"""A study's model again: the unedited model with edits from the journal, to go on from or to look
at.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jaxedit
from jaxedit.edits.edit import Dense, Edit, apply, make_edit, replay_edits
from jaxedit.edits.serialise import read_edit
from jaxedit.mesh import to_host
from jaxedit.metrics.perplexity import Perplexity, perplexity
from jaxedit.models.model import Model
from jaxedit.study.context import StudyContext
from jaxedit.study.journal import Journal, Step, read_journal


def edited_model(folder: Path, steps: list[int] | None = None, after: int | None = None) -> Model:
    """The model that a study had, or one with some of its edits.

    Args:
      folder: the study's.
      steps: the edits to apply, in this order, kept ones or not; None: the kept ones, as the study
        applied them.
      after: without steps, the model after this step; None: after the last.

    Raises:
      ValueError: where the folder is no study's, a step is not there or holds no edit, the model
        has changed, or the model after a step lies between two snapshots.
    """
    journal = read_journal(folder)
    config = journal.run["config"]
    model = jaxedit.load(config["model"], mesh=config["mesh"], dtype=config["dtype"])
    if model.fingerprint != journal.run["model_fingerprint"]:
        raise ValueError(
            f"{config['model']} is not the model that {folder} edited: its weights are others now"
        )
    by_number = {step.record["step"]: step for step in journal.steps[1:]}
    for number in [*(steps or ()), *([] if after is None else [after])]:
        if number not in by_number:
            raise ValueError(f"{folder} has no edit {number}; it has 1 to {len(by_number)}")
    whole = config["snapshot_every"] > 1
    if steps is not None:
        if whole:
            raise ValueError(
                f"{folder} holds the weights after every {config['snapshot_every']} edits, and no edit by itself"
            )
        for number in steps:
            model = apply(model, _edit(journal, by_number[number]))
        return model
    last = len(by_number) if after is None else after
    if whole and after is not None and not by_number[last].record.get("snapshot"):
        raise ValueError(
            f"{folder} holds the weights after every {config['snapshot_every']} edits only, not after {after}"
        )
    for number in range(1, last + 1):
        record = by_number[number].record
        if record.get("snapshot"):
            model = replay_edits(model, [_edit(journal, by_number[number])])
        elif record["kept"] and not whole:
            model = apply(model, _edit(journal, by_number[number]))
    return model


def _edit(journal: Journal, step: Step) -> Edit:
    made = (
        read_edit(step.arrays)
        if step.arrays and ("error" not in step.record or step.record.get("snapshot"))
        else None
    )
    if made is None or not made.deltas:
        said = step.record.get("error", "the journal does not hold it")
        raise ValueError(f"edit {step.record['step']} of {journal.folder} was not made: {said}")
    return made


class StudyState(NamedTuple):
    """Where a study stands: the model and editor's state with the kept edits, and the unedited
    model's perplexity.
    """

    model: Model
    state: Any
    base: Perplexity


def ends_study(context: StudyContext, record: dict[str, Any]) -> bool:
    """Whether a study stops for good with this step."""
    return context.guard.action == "stop" and bool(record.get("guard"))


def replay(context: StudyContext, state: Any, journal: Journal) -> StudyState:
    """The model and state that the journal's kept edits give."""
    model = context.unedited
    if not journal.steps:
        return StudyState(model, state, perplexity(model, context.texts))
    base = read_baseline(journal.steps[0])
    for step in journal.steps[1:]:
        kept, is_snapshot = step.record["kept"], step.record.get("snapshot", False)
        if context.single or step.arrays is None or not (kept or is_snapshot):
            continue
        edit = read_edit(step.arrays)
        model = replay_edits(model, [edit]) if is_snapshot else apply(model, edit)
        if kept:
            state = context.editor.restore(state, edit)
    return StudyState(model, state, base)


def journalled_edit(
    context: StudyContext, progress: StudyState, edit: Edit | None, number: int
) -> tuple[Edit | None, bool]:
    """What the journal gets of a step: its edit or, with snapshot_every > 1, what the state learns
    and now and then a snapshot.

    A snapshot is the whole change of every layer since the unedited model. The weights between two
    of them are in no file: a study that was interrupted there does these steps again, with the same
    result."""
    if context.snapshot_every == 1:
        return edit, False
    memory = edit.memory if edit else {}
    if number % context.snapshot_every and number < len(context.batches):
        return make_edit(context.unedited, [], memory), False
    overlay = progress.model.overlay
    deltas = []
    for weight, layers in context.editor.slots(context.unedited).items():
        for layer in layers:
            slot = int(overlay.slot[weight][layer])
            deltas.append(Dense(weight, layer, to_host(overlay.delta[weight][slot])))
    anchor = next((made.anchor for made in progress.model.metadata.history if made.anchor), None)
    return dataclasses.replace(make_edit(context.unedited, deltas, memory), anchor=anchor), True


def n_steps_to_keep(context: StudyContext, journal: Journal) -> int:
    """How many of a journal's edits a study goes on from: up to the last snapshot, or without the
    lot that was not finished.
    """
    n_done = len(journal.steps) - 1
    if n_done == len(context.numbers) or ends_study(context, journal.steps[-1].record):
        return n_done
    if context.snapshot_every > 1:
        return max(
            (step.record["step"] for step in journal.steps if step.record.get("snapshot")),
            default=0,
        )
    return n_done - n_done % context.edits_at_once


def read_baseline(step: Step) -> Perplexity:
    """The unedited model's perplexity, from a journal's first step."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if step.arrays is None:
        raise ValueError("the journal's first step has no arrays; the folder is not a study's")
    try:
        arrays = load_file(step.arrays)
        return Perplexity(arrays["nll_nats"], arrays["n_tokens"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{step.arrays} does not hold the unedited model's losses ({error}); restore it from a copy"
        ) from error
