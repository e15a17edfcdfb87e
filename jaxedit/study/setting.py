"""What does not change during a study: its model, editor, facts, texts and guard, made from a configuration and checked."""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxedit.datasets import read_requests, read_texts
from jaxedit.editors import Editor
from jaxedit.edits.request import Request
from jaxedit.metrics.perplexity import prepare
from jaxedit.models.load import load
from jaxedit.models.model import Model, with_slots
from jaxedit.models.score import Begun
from jaxedit.solving.moments import Stats
from jaxedit.study.config import editor_from, plain_config
from jaxedit.study.guard import Guard

MODES = ("sequential", "single")


class Setting(NamedTuple):
    """What does not change during a study; `snapshot_every` is 1 where each edit is journalled by itself."""

    unedited: Model  # with room for the edits
    editor: Editor
    batches: list[list[Request]]
    texts: Begun
    guard: Guard
    single: bool
    perplexity_every: int
    snapshot_every: int
    edits_at_once: int  # 1 where each has to wait for the one before


def set_up(config: ConfigDict, workdir: Path) -> tuple[Setting, Any, dict[str, Any]]:
    """The setting of a study, the editor's state before the first edit, and what the journal says the study is.

    Raises:
      ValueError: on a configuration, model, facts or texts that cannot be used.
    """
    keys = plain_config(config)
    if keys["mode"] not in MODES:
        raise ValueError(f"mode={keys['mode']!r}: expected one of {', '.join(MODES)}")
    if keys["n_facts"] < 0:
        raise ValueError(f"n_facts={keys['n_facts']}: expected a number of facts, or 0 for all")
    for name in ("batch_size", "perplexity_every", "snapshot_every", "edits_at_once"):
        if keys[name] < 1:
            raise ValueError(f"{name}={keys[name]}: expected a positive number")
    guard = Guard(**keys["guard"])
    asked, texts = read_requests(keys["facts"]), read_texts(keys["texts"])
    requests, size = asked.requests[: keys["n_facts"] or None], keys["batch_size"]
    if len(requests) % size and len(requests) < len(asked.requests):
        raise ValueError(
            f"n_facts={keys['n_facts']} is not a multiple of batch_size={size}, so the last edit would be cut short"
        )
    batches = [requests[i : i + size] for i in range(0, len(requests), size)]
    stats = Stats.load(Path(keys["stats"])) if keys["stats"] else None
    templates = saved_templates(workdir)
    editor = editor_from(keys["editor"], **({"context_templates": templates} if templates else {}))
    if keys["snapshot_every"] > 1 and (keys["mode"] == "single" or not editor.dense):
        raise ValueError(
            f"snapshot_every={keys['snapshot_every']} is for sequences of edits that change whole matrices; expected 1 for "
            f"{editor.name} in mode {keys['mode']}"
        )
    model = load(keys["model"], mesh=keys["mesh"], dtype=keys["dtype"])
    for weight, layers in editor.slots.items():
        model = with_slots(model, weight, layers)
    if editor.dense:
        _say_size(editor, model, len(batches), keys["snapshot_every"])
    state = editor.init(model, stats)
    run = {
        "config": keys,
        "model_fingerprint": model.fingerprint,
        "facts_sha256": _digest([request.__dict__ for request in asked.requests]),
        "texts_sha256": _digest(texts),
        "stats": None if stats is None else stats.digest,
        "n_skipped_facts": asked.n_skipped,
        "context_templates": getattr(state, "context_templates", None),
    }
    lowest = min(layer for layers in editor.slots.values() for layer in layers)
    single = keys["mode"] == "single"
    setting = Setting(
        unedited=model,
        editor=editor,
        batches=batches,
        texts=prepare(model, texts, lowest=lowest),
        guard=guard,
        single=single,
        perplexity_every=keys["perplexity_every"],
        snapshot_every=keys["snapshot_every"],
        edits_at_once=keys["edits_at_once"] if single and editor.each and size == 1 else 1,
    )
    return setting, state, run


def _say_size(editor: Editor, model: Model, n_steps: int, snapshot_every: int) -> None:
    """Logs how much a journal of whole matrices will take."""
    step_mb = sum(4e-6 * len(layers) * math.prod(model.base[weight].shape[1:]) for weight, layers in editor.slots.items())
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
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=list).encode()).hexdigest()
