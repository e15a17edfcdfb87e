"""An edited model with what is known of its edits: of a study's folder, or of a saved edit.

This is what commands load that run an edited model, and what leaves the house: exports, their
model cards, their verification.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxedit.datasets import read_requests
from jaxedit.editors import layer_field, published_hyper, with_own_layer_name
from jaxedit.edits.apply import apply, apply_saved
from jaxedit.edits.edit import Edit
from jaxedit.edits.request import Request, check_requests, request_from_json, with_leading_space
from jaxedit.files import expand_home, local_path
from jaxedit.models.load import load
from jaxedit.models.model import Model
from jaxedit.stats.second_moments import Stats
from jaxedit.study.config import default_config, editor_from
from jaxedit.study.digests import digest_requests
from jaxedit.study.entry_names import editor_entry
from jaxedit.study.journal import Journal, find_step, read_journal
from jaxedit.study.mirror import fetch_workdir
from jaxedit.study.record import StepRecord
from jaxedit.study.replay import edited_model
from jaxedit.study.validation import facts_of_edits


class EditedModel(NamedTuple):
    """A model with edits, and what is known of them.

    Attributes:
      model: its edits are `model.metadata.history`, in the order in which they were applied.
      source: the base, as `jaxedit.load` takes it.
      editor: "method", its hyper-parameters, other "alternatives"; empty where it is not known.
      records: of the steps whose edits the model has.
      requests: the facts that these edits write; where a study's facts are not there any more, the
        first of each edit.
      unedited_ppl: the unedited model's perplexity (mean over texts); None: not measured.
      texts: whose perplexity that is, as `jaxedit.datasets.read_texts` takes it.
      path: the study's work directory or the file of the edit; None: made here.
      run_steps: the steps of that study whose edits it has, in order, without those that the study
        began with.
      after_step: of a study that holds no edit by itself, the step after which the model was.
      bos: whether a begin-of-text token stands before each of the texts where they are scored.
    """

    model: Model
    source: str
    editor: Mapping[str, Any]
    records: tuple[StepRecord, ...]
    requests: tuple[Request, ...]
    unedited_ppl: float | None
    texts: str
    path: str | None = None
    run_steps: tuple[int, ...] = ()
    after_step: int | None = None
    bos: bool = False


def open_run(
    folder: str | os.PathLike[str],
    run_steps: list[int] | None = None,
    after_step: int | None = None,
    *,
    mesh: Mesh | str | None = None,
    dtype: str | None = None,
) -> EditedModel:
    """Load a study's model with edits of its journal.

    Args:
      folder: the study's work directory.
      run_steps: the edits to apply, in this order, kept ones or not; None: the kept ones.
      after_step: without run_steps, the model after this step; None: after the last.
      mesh: None: the study's.
      dtype: of the stored weights; None: the study's.

    Raises:
      ValueError: as `jaxedit.study.replay.edited_model`.
    """
    folder = fetch_workdir(folder)
    model = edited_model(folder, run_steps, after_step, mesh=mesh, dtype=dtype)
    journal = read_journal(folder)
    config = journal.run["config"]
    known = _known_of_run(journal, run_steps, after_step)
    # Of a study on top of other edits the first perplexity is that of a model with these.
    is_unedited = journal.steps and not journal.run.get("start_sha256")
    baseline = journal.steps[0].record.perplexity if is_unedited else None
    return EditedModel(
        model=model,
        source=config["model"],
        editor=editor_entry(config),
        records=known.records,
        requests=known.requests,
        unedited_ppl=baseline["mean"] if baseline else None,
        texts=config["texts"],
        path=str(folder.resolve()),
        run_steps=known.run_steps,
        after_step=known.after_step,
        bos=config["eval"]["bos"],
    )


class _Known(NamedTuple):
    """What is known of a model's edits: the steps that made them, their facts, the study's own."""

    records: tuple[StepRecord, ...] = ()
    requests: tuple[Request, ...] = ()
    run_steps: tuple[int, ...] = ()
    after_step: int | None = None


def _known_of_run(journal: Journal, run_steps: list[int] | None, after_step: int | None) -> _Known:
    """Read what a study knows of its edits, after those that its model had from the start."""
    start = journal.run["config"]["start"]
    before = _Known()
    if start["run"]:
        steps = list(start["run_steps"]) or None
        first = read_journal(fetch_workdir(start["run"]))
        before = _known_of_run(first, steps, start["after_step"])
    elif start["edit"]:
        before = _known_of_edit(Edit.load(start["edit"]))

    # The steps that are asked for: chosen ones, or those that were kept.
    # Whole matrices that are journalled now and then have no edit by itself, only the model after
    # a snapshot.
    records = [step.record for step in journal.steps[1:]]
    if after_step is not None:
        records = [record for record in records if record.step <= after_step]
    snapshot: int | None = None
    if run_steps is not None:
        had = [find_step(journal, number).record for number in run_steps]
    else:
        if journal.run["config"]["journal_dense_every"] > 1:
            snapshot = max((record.step for record in records if record.snapshot), default=None)
            records = [record for record in records if record.step <= (snapshot or 0)]
        had = [record for record in records if record.kept]
    return _Known(
        records=(*before.records, *had),
        requests=(*before.requests, *_requests_of(journal, had)),
        run_steps=tuple(record.step for record in had),
        after_step=snapshot,
    )


def _known_of_edit(edit: Edit) -> _Known:
    """Read what a saved edit says of itself."""
    record = edit.record
    steps = (StepRecord.from_dict(record["step"]),) if "step" in record else ()
    return _Known(steps, tuple(map(request_from_json, record.get("requests", ()))))


def _requests_of(journal: Journal, records: list[StepRecord]) -> tuple[Request, ...]:
    """Read the facts of steps; where the study's file is gone, those that the journal has."""
    config = journal.run["config"]
    try:
        asked = read_requests(config["facts"]).requests
    except ValueError:
        asked = []
    if digest_requests(asked) == journal.run["facts_sha256"]:
        batches = facts_of_edits(asked, config)
        return tuple(request for record in records for request in batches[record.step - 1])
    return tuple(
        Request(
            record.prompt,
            record.subject,
            record.target_new,
            record.target_true,
            leading_space=record.leading_space,
        )
        for record in records
        if record.prompt and record.subject and record.target_new
    )


def open_edit(
    path: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    mesh: Mesh | str | None = None,
    dtype: str | None = None,
) -> EditedModel:
    """Load a model with an edit that was saved by itself.

    Args:
      path: of `Edit.save`, `jaxedit edit --save` or a study's folder steps/.
      source: the base, as `jaxedit.load` takes it; None: the one that the file names.
      mesh: as `jaxedit.load` takes it.
      dtype: of the stored weights.

    Raises:
      ValueError: where the file holds no edit or names no base, or the edit is of another base.
    """
    edit = Edit.load(path)
    record = edit.record
    if source is None and "model" not in record:
        raise ValueError(f"{path} does not say which model it edits: give --model as well")
    base = expand_home(source) if source else record["model"]
    if not edit.deltas:
        raise ValueError(f"{path} changes no weight: it is a step that keeps keys alone")
    model = apply_saved(load(base, mesh=mesh, dtype=dtype), edit, path)
    baseline, known = record.get("unedited_ppl"), _known_of_edit(edit)
    return EditedModel(
        model=model,
        source=base,
        editor=record.get("editor", {}),
        records=known.records,
        requests=known.requests,
        unedited_ppl=None if baseline is None else float(baseline),
        texts=record.get("texts", ""),
        path=str(local_path(path).resolve()),
        bos=record.get("bos", False),
    )


def edit_model(
    model: Model,
    request: Request | Sequence[Request],
    method: str = "rome",
    *,
    stats: Stats | None = None,
    **hyper: Any,
) -> tuple[Model, Edit, dict[str, float]]:
    """Write a fact, or several in one edit, into a model: the short way above an editor's triple.

    Args:
      model: with or without edits; unchanged.
      request: the fact, or several for a method that writes batches.
      method: its name.
      stats: second moments, for methods that use them.
      **hyper: hyper-parameters under their published names; the others are those published for the
        method and the model, or the method's defaults.

    Returns:
      The edited model, the edit (which says what made it: `Edit.save`), and the editor's numbers.

    Raises:
      ValueError: on a method, hyper-parameter or request that cannot be, or where no layer is
        published for the model and none is given.
    """
    requests = check_requests([request] if isinstance(request, Request) else request)
    config = config_for(model, method, **hyper).to_dict()["editor"]
    editor = editor_from(config)
    edit, _, info = editor.edit(model, requests, editor.init(model, stats))
    source = model.metadata.source
    facts = with_leading_space(requests, config.get("leading_space"))
    about = EditedModel(model, source, config, (), tuple(facts), None, "")
    edit = with_record(edit, about)
    return apply(model, edit), edit, info


def config_for(model: Model, method: str, **hyper: Any) -> ConfigDict:
    """Return a study's configuration with the hyper-parameters published for a model.

    Args:
      model: to be edited.
      method: the editing method.
      **hyper: hyper-parameters that are given instead.

    Raises:
      ValueError: on an unknown method or hyper-parameter, or where no layer is published for the
        model and none is given.
    """
    # An unknown name is said before a missing layer.
    default_config(method, **hyper)
    hyper = with_own_layer_name(method, hyper)
    published: dict[str, Any] = {}
    try:
        published = published_hyper(method, model)
    except ValueError:
        if layer_field(method) not in hyper:
            raise
    return default_config(method, **{**published, **hyper})


def with_record(edit: Edit, edited: EditedModel) -> Edit:
    """Return an edit that says what made it, for a file that holds it alone.

    Args:
      edit: the model's only one.
      edited: the model with it.
    """
    record: dict[str, Any] = {
        "model": edited.source,
        "editor": dict(edited.editor),
        "requests": [dataclasses.asdict(request) for request in edited.requests],
        "unedited_ppl": edited.unedited_ppl,
        "texts": edited.texts,
        "bos": edited.bos,
    }
    if edited.records:
        record["step"] = edited.records[0].to_dict()
    return dataclasses.replace(edit, record=record)
