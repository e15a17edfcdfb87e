"""What does not change during a study: its model, editor, facts, texts and guard, made from a
configuration and checked.
"""

import functools
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxedit.datasets import read_requests, read_texts
from jaxedit.editors import Editor
from jaxedit.edits.request import Request
from jaxedit.mesh import replicate
from jaxedit.metrics.consistency import ReferenceTexts, read_references
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import KeyProbe, read_key_probe
from jaxedit.models.load import load
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.models.score import PrefilledTexts
from jaxedit.stats.second_moments import Stats
from jaxedit.study.config import editor_from, plain_config
from jaxedit.study.guard import Guard
from jaxedit.study.screening import predict_damage

MODES = ("sequential", "single")
SCREENS = ("", "record", "hold", "c-rome")


class Screening(NamedTuple):
    """What is predicted of each step's edit (nothing where it was not asked), and what is done to
    the hard ones.
    """

    predicted: dict[int, float]
    hard: frozenset[int]  # steps whose prediction is over the guard's limit
    instead: Editor | None  # what makes their edits; None: they are held back


class StudyContext(NamedTuple):
    """What does not change during a study; `snapshot_every` is 1 where each edit is journalled by
    itself.
    """

    unedited: Model  # with room for the edits
    editor: Editor
    batches: list[list[Request]]
    texts: PrefilledTexts
    guard: Guard
    single: bool
    perplexity_every: int
    divergence_every: int  # 0: never; so the next two
    fluency_every: int
    references: ReferenceTexts | None  # for the consistency of what is generated then
    retention_every: int
    prompts: tuple[
        str, ...
    ]  # that the model continues whenever the perplexity is measured regularly
    snapshot_every: int
    edits_at_once: int  # 1 where each has to wait for the one before
    numbers: tuple[int, ...]  # the steps that are made here: all, or those of the study's part
    probes: KeyProbe  # of the texts, for the relative perturbation
    weight_norm: float  # of the edited layers' weights together
    screening: Screening
    prefix: str | None  # a context template of the editor, behind which facts are asked as well


def build_context(
    config: ConfigDict, workdir: Path | None
) -> tuple[StudyContext, Any, dict[str, Any]]:
    """The context of a study, the editor's state before the first edit, and what the journal says
    the study is.

    Args:
      config: as `jaxedit.study.config.default_config`.
      workdir: whose context templates are taken where it has some; None: there is no folder.

    Raises:
      ValueError: on a configuration, model, facts or texts that cannot be used.
    """
    keys = _checked(config)
    guard = Guard(**keys["guard"])
    asked, texts = read_requests(keys["facts"]), read_texts(keys["texts"])
    batches, size = _batches(asked.requests, keys), keys["batch_size"]
    stats = Stats.load(Path(keys["stats"])) if keys["stats"] else None
    templates = None if workdir is None else saved_templates(workdir)
    editor = editor_from(keys["editor"], **({"context_templates": templates} if templates else {}))
    _check_snapshots(keys, editor)
    model = load(keys["model"], mesh=keys["mesh"], dtype=keys["dtype"])
    slots = editor.slots(model)
    for weight, layers in slots.items():
        model = allocate_deltas(model, weight, layers)
    if editor.dense:
        _say_size(editor, model, len(batches), keys["snapshot_every"])
    state = editor.init(model, stats)
    context_templates = editor.context_templates and editor.context_templates(state)
    run = {
        "config": keys,
        "model_fingerprint": model.fingerprint,
        "facts_sha256": _digest([request.__dict__ for request in asked.requests]),
        "texts_sha256": _digest(texts),
        "stats": None if stats is None else stats.digest,
        "n_skipped_facts": asked.n_skipped,
        "n_edits": len(batches),
        "context_templates": context_templates,
    }
    every = sorted(layer for layers in slots.values() for layer in layers)
    single, begun = keys["mode"] == "single", prepare(model, texts, start_layer=every[0])
    at_once = keys["edits_at_once"] if single and editor.edit_each and size == 1 else 1
    probes = read_key_probe(model, begun, tuple(every))
    context = StudyContext(
        unedited=model,
        editor=editor,
        batches=batches,
        texts=begun,
        guard=guard,
        single=single,
        perplexity_every=keys["perplexity_every"],
        divergence_every=keys["divergence_every"],
        fluency_every=keys["fluency_every"],
        references=read_references(keys["references"]) if keys["references"] else None,
        retention_every=0 if single else keys["retention_every"],
        prompts=_prompts(keys["prompts"]),
        snapshot_every=keys["snapshot_every"],
        edits_at_once=at_once,
        numbers=shard_steps(len(batches), at_once, keys["part"]),
        probes=probes,
        weight_norm=_weight_norm(model, slots),
        screening=_screen(keys, model, batches, guard, editor, state, probes),
        prefix=_last_template(context_templates),
    )
    return context, state, run


def _checked(config: ConfigDict) -> dict[str, Any]:
    """The configuration as nested dictionaries, its numbers and names looked at."""
    keys = plain_config(config)
    if keys["mode"] not in MODES:
        raise ValueError(f"mode={keys['mode']!r}: expected one of {', '.join(MODES)}")
    if keys["n_facts"] < 0:
        raise ValueError(f"n_facts={keys['n_facts']}: expected a number of facts, or 0 for all")
    for name in ("batch_size", "perplexity_every", "snapshot_every", "edits_at_once"):
        if keys[name] < 1:
            raise ValueError(f"{name}={keys[name]}: expected a positive number")
    for name in ("divergence_every", "fluency_every", "retention_every"):
        if keys[name] < 0:
            raise ValueError(f"{name}={keys[name]}: expected a number of edits, or 0 for never")
    if keys["part"] and (keys["mode"] != "single" or keys["guard"]["action"] == "stop"):
        raise ValueError(
            f"part={keys['part']!r}: only single edits, none of which ends the study, can be made in parts"
        )
    return keys


def _check_snapshots(keys: dict[str, Any], editor: Editor) -> None:
    if keys["snapshot_every"] > 1 and (keys["mode"] == "single" or not editor.dense):
        raise ValueError(
            f"snapshot_every={keys['snapshot_every']} is for sequences of edits that change whole matrices; expected 1 for "
            f"{editor.name} in mode {keys['mode']}"
        )


def _batches(asked: list[Request], keys: dict[str, Any]) -> list[list[Request]]:
    """The requests of each edit."""
    requests, size = asked[: keys["n_facts"] or None], keys["batch_size"]
    if len(requests) % size and len(requests) < len(asked):
        raise ValueError(
            f"n_facts={keys['n_facts']} is not a multiple of batch_size={size}, so the last edit would be cut short"
        )
    return [requests[i : i + size] for i in range(0, len(requests), size)]


def shard_steps(n_steps: int, at_once: int, part: str) -> tuple[int, ...]:
    """The steps of a part: lots of `at_once` steps, turn about. A lot is the same in whichever part
    it is made.

    Raises:
      ValueError: where the part is not I/N with 1 <= I <= N.
    """
    if not part:
        return tuple(range(1, n_steps + 1))
    which, _, n_parts = part.partition("/")
    if not (which.isdigit() and n_parts.isdigit() and 1 <= int(which) <= int(n_parts)):
        raise ValueError(
            f'part={part!r}: expected I/N with I from 1 to N, e.g. "2/8" for the second of eight parts'
        )
    return tuple(
        n for n in range(1, n_steps + 1) if (n - 1) // at_once % int(n_parts) == int(which) - 1
    )


def _prompts(given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(prompt, str) and prompt for prompt in given):
        raise ValueError(f"prompts={given!r}: expected a list of texts, each with something in it")
    return tuple(given)


def _last_template(templates: Any) -> str | None:
    """The last of an editor's context templates, which may lie in groups; None where there is none
    but the bare prompt.
    """
    while templates and not isinstance(templates, str):
        templates = templates[-1]
    return None if not templates or templates == "{}" else templates


def _weight_norm(model: Model, slots: Mapping[str, tuple[int, ...]]) -> float:
    """The Frobenius norm of all weights that edits change, as they are unedited."""
    squares = [
        _square_sum(model, weight, layer) for weight, layers in slots.items() for layer in layers
    ]
    return math.sqrt(sum(map(float, squares)))


@functools.partial(jax.jit, static_argnames="weight")
def _square_sum(model: Model, weight: str, layer) -> jax.Array:
    return replicate(model.mesh, jnp.sum(jnp.square(model.base[weight][layer].astype(jnp.float32))))


def _screen(
    keys: dict[str, Any],
    model: Model,
    batches: list[list[Request]],
    guard: Guard,
    editor: Editor,
    state: Any,
    probes: KeyProbe,
) -> Screening:
    """The predictions for a study's requests, where its configuration asks for them.

    Raises:
      ValueError: on a way of screening that there is not, or a method or guard it does not go with.
    """
    action, limit = keys["screen"], guard.max_relative_perturbation
    if action not in SCREENS:
        raise ValueError(f"screen={action!r}: expected one of {', '.join(map(repr, SCREENS))}")
    if not action:
        return Screening({}, frozenset(), None)
    if action != "record" and limit is None:
        raise ValueError(
            f"screen={action!r} needs guard.max_relative_perturbation, over which a prediction is a hard case"
        )
    found = predict_damage(
        model, [request for batch in batches for request in batch], editor, state, probes
    )
    predicted = {number: each.predicted for number, each in enumerate(found, 1)}
    if action == "record" or limit is None:
        return Screening(predicted, frozenset(), None)
    hard = frozenset(number for number, value in predicted.items() if value > limit)
    hyper = {**keys["editor"], "method": "c-rome"}
    hyper.pop("key_variant", None)
    return Screening(predicted, hard, editor_from(hyper) if action == "c-rome" else None)


def _say_size(editor: Editor, model: Model, n_steps: int, snapshot_every: int) -> None:
    """Logs how much a journal of whole matrices will take."""
    step_mb = sum(
        4e-6 * len(layers) * math.prod(model.base[weight].shape[1:])
        for weight, layers in editor.slots(model).items()
    )
    n_held = -(-n_steps // snapshot_every)
    logging.getLogger("jaxedit").warning(
        "%s changes whole matrices: the journal takes %.0f MB a step it keeps them for, %.1f GB for %d%s", editor.name, step_mb,
        step_mb * n_held / 1e3, n_held, "; snapshot_every keeps them less often" if snapshot_every == 1 else "",
    )  # fmt: skip


def saved_templates(workdir: Path) -> tuple[str, ...] | None:
    """The context templates that a study's folder was begun with, if it was."""
    path = workdir / "run.json"
    if not path.is_file():
        return None
    try:
        templates = json.loads(path.read_text(encoding="utf-8")).get("context_templates")
    except (ValueError, AttributeError):
        return None  # open_journal says what is wrong with it
    return tuple(templates) if templates else None


def _digest(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, default=list).encode()
    ).hexdigest()
