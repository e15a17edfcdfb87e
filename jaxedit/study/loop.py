"""A study: a fold of edits over a model that is scored after every step.

    edit -> apply -> measure -> guard (keep, roll back, stop) -> journal

A rejected edit leaves neither weights nor state. Resuming replays the journal's kept edits and gives the same bits as a
study that was never interrupted.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxedit.datasets import read_requests, read_texts
from jaxedit.editors import Editor
from jaxedit.edits.edit import Edit, apply
from jaxedit.edits.journal import Journal, Step, open_journal, pack_edit, plain, read_edit, read_steps
from jaxedit.edits.request import Request
from jaxedit.metrics.facts import facts, mean_fact
from jaxedit.metrics.perplexity import Perplexity, perplexity, prepare
from jaxedit.models.generate import generate
from jaxedit.models.load import load
from jaxedit.models.model import Model, with_slots
from jaxedit.models.score import Packed
from jaxedit.solving.moments import Stats
from jaxedit.study.config import editor_from, plain_config
from jaxedit.study.guard import Guard

MODES = ("sequential", "single")
SAYS_TOKENS = 8  # how much of a continuation is kept, for people to read


class Setting(NamedTuple):
    """What does not change during a study."""

    unedited: Model  # with room for the edits
    editor: Editor
    batches: list[list[Request]]
    packed: Packed
    guard: Guard
    single: bool
    perplexity_every: int


class Progress(NamedTuple):
    """Where a study stands: the model and editor's state with the kept edits, and the unedited model's perplexity."""

    model: Model
    state: Any
    base: Perplexity


def study(
    config: ConfigDict, workdir: Path, on_step: Callable[[dict[str, Any], int], None] = lambda record, total: None
) -> Path:
    """Runs or continues a study; returns its folder.

    Args:
      config: as `jaxedit.study.config.default_config`.
      workdir: new, or a study's with the same configuration (only n_facts may grow), which is then continued.
      on_step: called with each step's record, also those found in the journal, and the number of steps there will be.

    Raises:
      ValueError: on a configuration, model, facts or texts that cannot be used, or a folder of another study.
      OSError: where a step cannot be written; all steps before are whole.
    """
    setting, state, run = _set_up(config, workdir)
    journal = open_journal(workdir, run, may_differ=("config.n_facts",))
    total = len(setting.batches)
    for step in journal.steps:
        on_step(step.record, total)
    progress = _replay(setting, state, journal)
    if not journal.steps:
        record, arrays = _baseline_record(progress.base)
        journal.append(record, arrays, {})
        on_step(record, total)
    if journal.steps and _ends(setting, journal.steps[-1].record):
        return workdir
    for number in range(max(len(journal.steps), 1), total + 1):
        progress, record, edit = _step(setting, progress, number)
        journal.append(record, *(pack_edit(edit) if edit else ({}, {})))
        on_step(record, total)
        if _ends(setting, record):
            break
    if not setting.single:
        _retain(setting, progress, workdir)
    return workdir


def _retain(setting: Setting, progress: Progress, workdir: Path) -> None:
    """Writes how the kept edits' facts hold in the last model, unless that was done before."""
    kept = [step.record["step"] for step in read_steps(workdir, repair=False)[1:] if step.record["kept"]]
    path = workdir / "retained.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["steps"] == kept:
        return
    held = [mean_fact(facts(progress.model, setting.batches[number - 1])) for number in kept]
    path.write_text(json.dumps(plain({"steps": kept, "facts": held}), ensure_ascii=False), encoding="utf-8")


def _ends(setting: Setting, record: dict[str, Any]) -> bool:
    """Whether a study stops for good with this step."""
    return setting.guard.action == "stop" and bool(record.get("guard"))


def _set_up(config: ConfigDict, workdir: Path) -> tuple[Setting, Any, dict[str, Any]]:
    keys = plain_config(config)
    if keys["mode"] not in MODES:
        raise ValueError(f"mode={keys['mode']!r}: expected one of {', '.join(MODES)}")
    if keys["n_facts"] < 0:
        raise ValueError(f"n_facts={keys['n_facts']}: expected a number of facts, or 0 for all")
    for name in ("batch_size", "perplexity_every"):
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
    model = load(keys["model"], mesh=keys["mesh"], dtype=keys["dtype"])
    for weight, layers in editor.slots.items():
        model = with_slots(model, weight, layers)
    if editor.dense:
        n_bytes = sum(4 * len(layers) * math.prod(model.base[weight].shape[1:]) for weight, layers in editor.slots.items())
        logging.getLogger("jaxedit").warning(
            "%s changes whole matrices: %.0f MB a step, %.1f GB for %d", editor.name, n_bytes / 1e6,
            n_bytes * len(batches) / 1e9, len(batches),
        )  # fmt: skip
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
    single, every = keys["mode"] == "single", keys["perplexity_every"]
    return Setting(model, editor, batches, prepare(model, texts), guard, single, every), state, run


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


def _replay(setting: Setting, state: Any, journal: Journal) -> Progress:
    """The model and state that the journal's kept edits give."""
    model = setting.unedited
    if not journal.steps:
        return Progress(model, state, perplexity(model, setting.packed))
    base = read_baseline(journal.steps[0])
    for step in journal.steps[1:]:
        if step.record["kept"] and step.arrays is not None and not setting.single:
            edit = read_edit(step.arrays)
            model, state = apply(model, edit), setting.editor.absorb(state, edit)
    return Progress(model, state, base)


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


def _baseline_record(base: Perplexity) -> tuple[dict[str, Any], dict[str, Any]]:
    record = {"step": 0, "perplexity": {"mean": base.mean, "pooled": base.pooled, "n_broken": base.n_broken}}
    return record, {"nll_nats": base.nll_nats, "n_tokens": base.n_tokens}


def _step(setting: Setting, progress: Progress, number: int) -> tuple[Progress, dict[str, Any], Edit | None]:
    """One edit, measured and judged; the progress changes only where it is kept."""
    batch = setting.batches[number - 1]
    request = batch[0]
    record: dict[str, Any] = {
        "step": number,
        "case_id": request.case_id,
        "prompt": request.prompt,
        "subject": request.subject,
        "target_new": request.target_new,
        "target_true": request.target_true,
        "n_requests": len(batch),
        "kept": False,
        "guard": "",
    }
    watch = Stopwatch()
    question = request.question
    try:
        edit, state, info = setting.editor.edit(progress.model, batch, progress.state)
        watch.lap("edit")
        edited = apply(progress.model, edit)
        watch.lap("apply")
        before, fact = mean_fact(facts(setting.unedited, batch)), mean_fact(facts(edited, batch))
        watch.lap("facts")
        says = generate(edited, [question], max_new_tokens=SAYS_TOKENS)[0].removeprefix(question)
        watch.lap("generate")
    except ValueError as error:  # this request cannot be edited or measured; the study goes on without it
        return progress, record | {"error": str(error), "time_s": watch.read()}, None
    due = number % setting.perplexity_every == 0 or number == len(setting.batches)
    after = perplexity(edited, setting.packed) if due else None
    watch.lap("perplexity")
    guard = setting.guard.trips(after, progress.base, edit.norm)
    kept = not setting.single and (not guard or setting.guard.action == "record")
    record |= {
        "kept": kept,
        "guard": guard,
        **({} if after is None else {"perplexity": _perplexity_record(after, progress.base)}),
        "fact": fact,
        "before": before,
        "says": says,
        "editor": info,
        "edit_norm": edit.norm,
        "time_s": watch.read(),
    }
    return (Progress(edited, state, progress.base) if kept else progress), record, edit


def _perplexity_record(after: Perplexity, base: Perplexity) -> dict[str, float]:
    difference, stderr = after.versus(base)
    return {
        "mean": after.mean,
        "pooled": after.pooled,
        "ratio": after.mean / base.mean,
        "delta_nll_nats": difference,
        "delta_nll_stderr_nats": stderr,
        "n_broken": after.n_broken,
    }


class Stopwatch:
    """Seconds of each phase of a step."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self.laps[phase] = round(now - self.last, 4)
        self.last = now

    def read(self) -> dict[str, float]:
        """Seconds a phase so far."""
        return dict(self.laps)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=list).encode()).hexdigest()
