"""The model that a study's journal describes: to go on from, or to look at."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from safetensors import SafetensorError

from jaxedit.edits.apply import apply_all, apply_saved, replay_edits
from jaxedit.edits.edit import Edit
from jaxedit.metrics.perplexity import Perplexity
from jaxedit.models.fingerprints import compare_fingerprints
from jaxedit.models.load import load
from jaxedit.models.model import Model
from jaxedit.study.digests import digest_edits
from jaxedit.study.journal import Journal, Step, find_step, read_journal
from jaxedit.study.mirror import fetch_workdir
from jaxedit.study.remarks import journal_remarks, undone_remarks
from jaxedit.study.run_file import explain_tokenizer


class StudyState(NamedTuple):
    """Where a study stands: the model and the editor's state with the kept edits."""

    model: Model
    editor_state: Any


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
    edits: list[Edit] = []
    for step in steps:
        record = step.record
        if not (record.kept or record.snapshot):
            continue
        edit = step.read_edit()
        if record.snapshot:
            model, edits = replay_edits(model, [edit]), []
        elif edit.deltas:  # without: only what the editor's state learnt is in the journal
            edits.append(edit)
        if record.kept and restore is not None:
            editor_state = restore(editor_state, edit)
    return StudyState(apply_all(model, edits), editor_state)


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
      after_step: without run_steps, the model after this step, without edits that were undone
        since; None: after the last.
      mesh: as `jaxedit.load` takes it; None: the study's.
      dtype: of the stored weights; None: the study's.

    Raises:
      ValueError: where the folder is no study's, a step is not there or holds no edit, the model
        or the edits that the study began with have changed, or the model after a step lies between
        two snapshots.
    """
    # The model of the study, and the steps that are asked for.
    folder = fetch_workdir(folder)
    journal = read_journal(folder)
    config = journal.run["config"]
    model = load_start(config, mesh=config["mesh"] if mesh is None else mesh, dtype=dtype)
    _check_model(journal, model)
    if journal.run.get("start_sha256") != digest_edits(model.metadata.history):
        raise ValueError(
            f"{folder} began with other edits than {config['start']} names now: some were "
            "undone or made since"
        )
    chosen = [find_step(journal, number) for number in run_steps or ()]
    last = None if after_step is None else find_step(journal, after_step)

    # Chosen edits, or the model as the study left it.
    every = config["journal_dense_every"]
    if run_steps is not None:
        if every > 1:
            raise ValueError(
                f"{folder} holds the weights after every {every} edits, and no edit by itself"
            )
        return apply_all(model, [read_step_edit(journal, step) for step in chosen])
    if every > 1 and last is not None and not last.record.snapshot:
        raise ValueError(
            f"{folder} holds the weights after every {every} edits only, not after {after_step}"
        )
    steps, remarks = journal.steps[1:], journal_remarks(journal)
    if last is not None:
        remarks = undone_remarks(journal, last.record)
        steps = [step for step in steps if step.record.step <= last.record.step]
    for remark in remarks:
        logging.getLogger("jaxedit").warning("%s: %s", folder, remark)
    return replay(model, steps).model


def _check_model(journal: Journal, model: Model) -> None:
    """Check that a model is the one that a study edited.

    Args:
      journal: the study's.
      model: that is there now.

    Raises:
      ValueError: where it is another; the message says what differs.
    """
    name = f"{journal.run['config']['model']} is not the model that {journal.folder} edited"
    known = (model.fingerprint, model.rounded_fingerprint)
    if journal.run.get("model_fingerprint") not in known:
        raise ValueError(f"{name}: its weights are others now")
    theirs = dict(journal.run.get("fingerprints") or {})  # older journals have none
    if journal.run["model_fingerprint"] != model.fingerprint:  # there they lay in another dtype
        theirs.pop("weights", None)
    differing = compare_fingerprints(theirs, model.fingerprints)
    if differing:
        others = {
            part
            for part, own in model.fingerprints._asdict().items()
            if part in theirs and theirs[part] != own
        }
        why = explain_tokenizer(journal.run) if others == {"tokenizer"} else ""
        raise ValueError(f"{name}: {differing}{why}")


def load_start(
    config: Mapping[str, Any], *, mesh: Mesh | str | None = None, dtype: str | None = None
) -> Model:
    """Load the model that a study begins with: its base, and the edits that `start` names.

    Args:
      config: a study's configuration, as plain values.
      mesh: as `jaxedit.load` takes it.
      dtype: of the stored weights; None: the configuration's.

    Raises:
      ValueError: where `start` names two things or another model's edits, or as `jaxedit.load`.
    """
    start, dtype = config["start"], dtype or config["dtype"]
    if start["run"] and start["edit"]:
        raise ValueError("start.run and start.edit exclude each other: expected one of them")
    if start["run"]:
        folder = fetch_workdir(start["run"])
        source = read_journal(folder).run["config"]["model"]
        if source != config["model"]:
            raise ValueError(
                f"start.run={start['run']} edited {source}, not model={config['model']}: expected "
                "the same model"
            )
        run_steps = list(start["run_steps"]) or None
        return edited_model(folder, run_steps, start["after_step"], mesh=mesh, dtype=dtype)
    model = load(config["model"], mesh=mesh, dtype=dtype)
    saved = start["edit"]
    return apply_saved(model, Edit.load(saved), saved) if saved else model


def read_step_edit(journal: Journal, step: Step) -> Edit:
    """Read the edit of a step.

    Raises:
      ValueError: where it was not made, or the journal does not hold it.
    """
    edit = step.read_edit() if step.record.is_made or step.record.snapshot else None
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

    step.check_arrays()
    try:
        arrays = load_file(step.arrays)
        return Perplexity(arrays["nll_nats"], arrays["n_tokens"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{step.arrays} does not hold the unedited model's losses ({error}); restore it from a "
            "copy"
        ) from error
