"""The model that a study's journal describes: to go on from, or to look at."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from safetensors import SafetensorError

from jaxedit.edits.apply import apply, replay_edits
from jaxedit.edits.edit import Dense, Edit, make_edit, read_edit
from jaxedit.mesh import to_host
from jaxedit.metrics.perplexity import Perplexity
from jaxedit.models.load import load
from jaxedit.models.model import Model
from jaxedit.study.context import StudyContext, StudyState
from jaxedit.study.journal import Journal, Step, read_journal
from jaxedit.study.record import StepRecord


def replay(
    model: Model,
    steps: list[Step],
    editor_state: Any = None,
    restore: Callable[[Any, Edit], Any] | None = None,
) -> StudyState:
    """Apply the kept edits of a journal in order; a snapshot replaces all edits before it.

    Args:
      model: unedited.
      steps: of the journal, without the baseline.
      editor_state: before the first edit.
      restore: (state, edit) -> the editor's state after a kept edit; None: it is not wanted.
    """
    for step in steps:
        record = step.record
        if not (record.kept or record.snapshot):
            continue
        edit = read_edit(step.arrays)
        if record.snapshot:
            model = replay_edits(model, [edit])
        elif edit.deltas:  # without: only what the editor's state learnt is in the journal
            model = apply(model, edit)
        if record.kept and restore is not None:
            editor_state = restore(editor_state, edit)
    return StudyState(model, editor_state)


def edited_model(
    folder: str | Path,
    run_steps: list[int] | None = None,
    after_step: int | None = None,
    *,
    mesh: Mesh | str | None = None,
    dtype: str | None = None,
) -> Model:
    """Load a study's model with edits of its journal.

    Args:
      folder: the study's work directory.
      run_steps: the edits to apply, in this order, kept ones or not; None: the kept ones, as the
        study applied them.
      after_step: without run_steps, the model after this step; None: after the last.
      mesh: as `jaxedit.load` takes it; None: the study's.
      dtype: of the stored weights; None: the study's.

    Raises:
      ValueError: where the folder is no study's, a step is not there or holds no edit, the model
        has changed, or the model after a step lies between two snapshots.
    """
    # The model of the study, and the steps that are asked for.
    folder = Path(folder)
    journal = read_journal(folder)
    config = journal.run["config"]
    model = load(
        config["model"],
        mesh=config["mesh"] if mesh is None else mesh,
        dtype=dtype or config["dtype"],
    )
    if journal.run["model_fingerprint"] not in (model.fingerprint, model.rounded_fingerprint):
        raise ValueError(
            f"{config['model']} is not the model that {folder} edited: its weights are others now"
        )
    by_number = {step.record.step: step for step in journal.steps[1:]}
    for number in [*(run_steps or ()), *([] if after_step is None else [after_step])]:
        if number not in by_number:
            raise ValueError(f"{folder} has no edit {number}; it has 1 to {len(by_number)}")

    # Chosen edits, or the model as the study left it.
    every = config["journal_dense_every"]
    if run_steps is not None:
        if every > 1:
            raise ValueError(
                f"{folder} holds the weights after every {every} edits, and no edit by itself"
            )
        for number in run_steps:
            model = apply(model, read_step_edit(journal, by_number[number]))
        return model
    last = len(by_number) if after_step is None else after_step
    if every > 1 and after_step is not None and not by_number[last].record.snapshot:
        raise ValueError(
            f"{folder} holds the weights after every {every} edits only, not after {after_step}"
        )
    return replay(model, journal.steps[1 : last + 1]).model


def read_step_edit(journal: Journal, step: Step) -> Edit:
    """Read the edit of a step.

    Raises:
      ValueError: where it was not made, or the journal does not hold it.
    """
    edit = read_edit(step.arrays) if step.record.is_made or step.record.snapshot else None
    if edit is None or not edit.deltas:
        why = step.record.error or step.record.skipped or "the journal does not hold it"
        raise ValueError(f"edit {step.record.step} of {journal.folder} was not made: {why}")
    return edit


def read_baseline(step: Step) -> Perplexity:
    """Read the unedited model's perplexity from a journal's first step.

    Raises:
      ValueError: where its arrays are not there.
    """
    from safetensors.numpy import load_file

    try:
        arrays = load_file(step.arrays)
        return Perplexity(arrays["nll_nats"], arrays["n_tokens"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{step.arrays} does not hold the unedited model's losses ({error}); restore it from a "
            "copy"
        ) from error


class JournalledEdit(NamedTuple):
    """What the journal holds of a step: an edit (None: nothing), and whether it is a snapshot."""

    edit: Edit | None
    is_snapshot: bool


def journalled_edit(
    context: StudyContext, state: StudyState, edit: Edit | None, step: int
) -> JournalledEdit:
    """Return what the journal gets of a step.

    With journal_dense_every = k > 1 that is what the editor's state learnt and, every k edits, a
    snapshot: the whole change of every layer since the unedited model. The weights between two
    snapshots are in no file: a study that was interrupted there does these steps again, with the
    same result.
    """
    every = context.journal_dense_every
    if every == 1:
        return JournalledEdit(edit, False)
    memory = edit.memory if edit else {}
    if step % every and step < len(context.batches):
        return JournalledEdit(make_edit(context.unedited, [], memory), False)
    overlay = state.model.overlay
    deltas = []
    for weight, layers in context.editor.slots(context.unedited).items():
        for layer in layers:
            slot = int(overlay.slot[weight][layer])
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
    if n_done == len(context.steps) or ends_study(context, journal.steps[-1].record):
        return n_done
    if context.journal_dense_every > 1:
        snapshots = [step.record.step for step in journal.steps if step.record.snapshot]
        return max(snapshots, default=0)
    return n_done - n_done % context.single_batch_size


def ends_study(context: StudyContext, record: StepRecord) -> bool:
    """Tell whether a study stops for good with this step."""
    return context.guard.action == "stop" and record.guard_code is not None
