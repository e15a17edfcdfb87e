"""What a study runs with, made from its configuration and checked: model, editor, facts, texts."""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxedit.datasets import Requests, read_requests, read_texts
from jaxedit.editors import Editor
from jaxedit.edits.edit import places_of
from jaxedit.edits.request import Request
from jaxedit.mesh import replicate
from jaxedit.metrics.consistency import ReferenceTexts, read_references
from jaxedit.metrics.judge import Judge
from jaxedit.metrics.perplexity import prepare, scores_with_bos
from jaxedit.metrics.perturbation import KeyProbe, read_key_probe
from jaxedit.models.loss_probe import LossProbe, read_loss_probe
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.models.score import PrefilledTexts
from jaxedit.rounding import ceil_div
from jaxedit.solving.harm_texts import check_not_evaluated
from jaxedit.stats.second_moments import Stats
from jaxedit.study.alternatives import (
    harm_text_sources,
    whole_entries,
    with_alternatives,
    with_used_templates,
)
from jaxedit.study.config import AUTO, editor_from, plain_config, with_published_layers
from jaxedit.study.digests import digest, digest_edits, digest_requests
from jaxedit.study.guard import Guard
from jaxedit.study.replay import load_start
from jaxedit.study.run_file import installed_versions, saved_alternatives, saved_templates
from jaxedit.study.screening import Screening, check_screening, screen_steps
from jaxedit.study.validation import (
    check_editor,
    complete_config,
    facts_of_edits,
    shard_steps,
    with_local_paths,
)


class Evaluation(NamedTuple):
    """What is measured besides the facts, each after every so many edits.

    The perplexity is always measured; for the others 0 means never.

    Attributes:
      perplexity_every: of the study's texts; also after the last edit. None: where the predicted
        change asks for it.
      kl_every: KL(unedited || edited) on the texts.
      fluency_every: fluency of what is generated for the facts, and consistency where there are
        reference texts.
      retention_every: whether the facts of all kept edits still hold.
      prompts: texts that the model continues whenever the perplexity is due.
      reference_texts: for the consistency.
      generated_every: what the model says about the edit's facts.
      generated_context: in which it is asked, one of `jaxedit.metrics.generated.CONTEXTS`.
      judge: of what it says; None: there is none.
    """

    perplexity_every: int | None
    kl_every: int
    fluency_every: int
    retention_every: int
    prompts: tuple[str, ...]
    reference_texts: ReferenceTexts | None
    generated_every: int
    generated_context: str
    judge: Judge | None


class StudyContext(NamedTuple):
    """What does not change during a study.

    Attributes:
      run: what the journal says the study is.
      unedited: the model, its deltas allocated for the edits.
      initial_state: the editor's, before the first edit.
      batches: the requests of each edit, that of step n at n - 1.
      steps: the numbers of the steps that are made here: all, or those of the study's shard.
      single: whether every edit is made on the unedited model.
      single_batch_size: how many single edits are made together; 1: one at a time.
      journal_dense_every: 1 where each edit is journalled by itself.
      key_probe: of the texts, for the relative perturbation.
      loss_probe: of the texts, for the predicted change of the loss; None: it is not predicted.
      weight_norm: the Frobenius norm of all weights that edits change, unedited.
      prefix: a context template of the editor, behind which facts are asked as well.
    """

    run: dict[str, Any]
    unedited: Model
    editor: Editor
    initial_state: Any
    batches: list[list[Request]]
    steps: tuple[int, ...]
    texts: PrefilledTexts
    evaluation: Evaluation
    guard: Guard
    screening: Screening
    single: bool
    single_batch_size: int
    journal_dense_every: int
    key_probe: KeyProbe
    loss_probe: LossProbe | None
    weight_norm: float
    prefix: str | None


class Inputs(NamedTuple):
    """What a configuration names, read: facts, texts, second moments, texts not to be harmed."""

    requests: Requests
    texts: list[str]
    stats: Stats | None
    harm_texts: list[str]


def build_context(config: ConfigDict, workdir: Path | None) -> StudyContext:
    """Read and check everything that a study needs before its first edit.

    Args:
      config: as `jaxedit.study.config.default_config`.
      workdir: whose context templates are taken where it has some; None: there is no folder.

    Raises:
      ValueError: on a configuration, model, facts or texts that cannot be used.
    """
    values = complete_config(with_local_paths(plain_config(config)))
    guard = Guard(**values["guard"])
    check_screening(values["screening"], guard)
    inputs = _read_inputs(values)
    batches = facts_of_edits(inputs.requests.requests, values)

    # The editor, the model, and room for the deltas of all edits at the edited layers.
    templates = saved_templates(workdir, values["editor"]["method"])
    own_templates = {"context_templates": templates} if templates else {}
    editor = editor_from(values["editor"], **own_templates)
    check_editor(values, editor)
    model = load_start(values, mesh=values["mesh"])
    editor = _editor_of_all(editor, values, model, workdir)
    slots = editor.slots(model)
    for weight, layers in slots.items():
        model = allocate_deltas(model, weight, layers)
    _log_journal_size(editor, model, len(batches), values["journal_dense_every"])
    state = editor.init(model, inputs.stats)
    values["alternatives"] = with_used_templates(values["alternatives"], state)

    # What no edit changes is computed once.
    layers = tuple(sorted({layer for layers in slots.values() for layer in layers}))
    tables = model.overlay.slot.values()
    lowest = min(layer for slot_L in tables for layer, slot in enumerate(slot_L) if slot >= 0)
    bos = values["eval"]["bos"] = _scores_with_bos(values["eval"], model)
    texts = prepare(model, inputs.texts, bos, start_layer=lowest)
    key_probe = read_key_probe(model, texts, layers, slots)
    single = values["mode"] == "single"
    together = single and editor.edit_each is not None and values["facts_per_edit"] == 1
    batch_size = values["single_batch_size"] if together else 1
    used = editor.context_templates and editor.context_templates(state)
    return StudyContext(
        run=_describe(values, model, inputs, len(batches), used),
        unedited=model,
        editor=editor,
        initial_state=state,
        batches=batches,
        steps=shard_steps(len(batches), batch_size, values["shard"]),
        texts=texts,
        evaluation=_evaluation(values["eval"], single),
        guard=guard,
        screening=screen_steps(values, model, batches, guard, editor, state, key_probe),
        single=single,
        single_batch_size=batch_size,
        journal_dense_every=values["journal_dense_every"],
        key_probe=key_probe,
        loss_probe=_read_loss_probe(values["eval"]["prediction_draws"], model, texts, slots),
        weight_norm=_weight_norm(model, slots),
        prefix=_last_template(used),
    )


def _read_inputs(values: Mapping[str, Any]) -> Inputs:
    """Read the facts, the texts and the second moments."""
    texts = read_texts(values["texts"])
    harm_texts = [text for each in harm_text_sources(values) for text in read_texts(each)]
    check_not_evaluated(harm_texts, texts)
    stats = Stats.load(values["stats"]) if values["stats"] else None
    return Inputs(read_requests(values["facts"]), texts, stats, harm_texts)


def _editor_of_all(
    editor: Editor, values: dict[str, Any], model: Model, workdir: Path | None
) -> Editor:
    """Return the editor, beside its alternatives where there are some; all entries get whole."""
    values["editor"] = with_published_layers(values["editor"], model)
    if not values["alternatives"]:
        return editor
    saved = saved_alternatives(workdir)
    entries = whole_entries(model, values["editor"], values["alternatives"], saved)
    values["alternatives"] = entries
    return with_alternatives(editor, entries, read_texts(values["harm_texts"]))


def _read_loss_probe(
    n_draws: int, model: Model, texts: PrefilledTexts, slots: Mapping[str, Sequence[int]]
) -> LossProbe | None:
    """Read what the texts' losses depend on, where their change is to be predicted."""
    if not n_draws:
        return None
    return read_loss_probe(model, texts, places_of(slots), n_draws, split=True)


def _evaluation(values: Mapping[str, Any], single: bool) -> Evaluation:
    source = values["reference_texts"]
    return Evaluation(
        perplexity_every=None if values["perplexity_every"] == AUTO else values["perplexity_every"],
        kl_every=values["kl_every"],
        fluency_every=values["fluency_every"],
        retention_every=0 if single else values["retention_every"],  # nothing is kept
        prompts=tuple(values["prompts"]),
        reference_texts=read_references(source) if source else None,
        generated_every=values["generated_every"],
        generated_context=values["generated_context"],
        judge=Judge(values["judge"], values["judge_model"]) if values["judge"] else None,
    )


def _scores_with_bos(evaluation: Mapping[str, Any], model: Model) -> bool:
    """Return whether texts are scored behind a begin-of-text token: as asked, else as usual."""
    asked = evaluation["bos"]
    return scores_with_bos(model) if asked is None else asked


def _last_template(templates: Any) -> str | None:
    """Take the last of an editor's context templates (maybe in groups); None: the bare prompt."""
    while templates and not isinstance(templates, str):
        templates = templates[-1]
    return None if not templates or templates == "{}" else templates


def _weight_norm(model: Model, slots: Mapping[str, tuple[int, ...]]) -> float:
    squares = [_square_sum(model, *place) for place in places_of(slots)]
    return math.sqrt(sum(map(float, squares)))


@functools.partial(jax.jit, static_argnames="weight")
def _square_sum(model: Model, weight: str, layer) -> jax.Array:
    square_FD = jnp.square(model.base[weight][layer].astype(jnp.float32))
    return replicate(model.mesh, jnp.sum(square_FD))


def _log_journal_size(editor: Editor, model: Model, n_steps: int, every: int) -> None:
    """Log how much a journal of whole matrices will take, where edits change such."""
    if not editor.dense:
        return
    slots = editor.slots(model)
    step_mb = sum(
        4e-6 * len(layers) * math.prod(model.base[weight].shape[1:])
        for weight, layers in slots.items()
    )
    n_held = ceil_div(n_steps, every)
    logging.getLogger("jaxedit").warning(
        "%s changes whole matrices: the journal takes %.0f MB a step it keeps them for, %.1f GB "
        "for %d%s",
        editor.name,
        step_mb,
        step_mb * n_held / 1e3,
        n_held,
        "; journal_dense_every keeps them less often" if every == 1 else "",
    )


def _describe(
    values: dict[str, Any], model: Model, inputs: Inputs, n_edits: int, templates: Any
) -> dict[str, Any]:
    """Describe what the study is, for run.json."""
    return {
        "config": values,
        "model_fingerprint": model.fingerprint,
        "fingerprints": model.fingerprints._asdict(),
        "start_sha256": digest_edits(model.metadata.history),
        "facts_sha256": digest_requests(inputs.requests.requests),
        "texts_sha256": digest(inputs.texts),
        **({"harm_texts_sha256": digest(inputs.harm_texts)} if inputs.harm_texts else {}),
        "stats": None if inputs.stats is None else inputs.stats.digest,
        "n_skipped_facts": inputs.requests.n_skipped,
        "n_edits": n_edits,
        "context_templates": templates,
        "versions": installed_versions(),
    }
