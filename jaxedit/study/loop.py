"""A study: a fold of edits over a model that is scored after every step.

    edit -> apply -> measure -> guard (keep, roll back, stop) -> journal

A rejected edit leaves neither weights nor state. Resuming replays the journal's kept edits and gives the same bits as a
study that was never interrupted.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxedit.edits.edit import Dense, Edit, apply, make_edit, rebuild
from jaxedit.edits.journal import Journal, Step, open_journal, pack_edit, plain, read_edit, read_steps
from jaxedit.metrics.facts import facts, mean_fact
from jaxedit.metrics.perplexity import Perplexity, perplexity
from jaxedit.models.generate import generate
from jaxedit.models.model import Model
from jaxedit.study.setting import Setting, set_up

SAYS_TOKENS = 8  # how much of a continuation is kept, for people to read


class Progress(NamedTuple):
    """Where a study stands: the model and editor's state with the kept edits, and the unedited model's perplexity."""

    model: Model
    state: Any
    base: Perplexity


class Made(NamedTuple):
    """An edit of a request by itself that was made together with others, before its step came."""

    edit: Edit
    info: dict[str, float]
    before: dict[str, Any]
    time_s: float
    lot: int  # the first step of those made together


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
    setting, state, run = set_up(config, workdir)
    journal = open_journal(workdir, run, may_differ=("config.n_facts",))
    total = len(setting.batches)
    if len(journal.steps) > total + 1:
        raise ValueError(
            f"{workdir} holds {len(journal.steps) - 1} edits, n_facts={config.n_facts} asks for {total}: give another --workdir"
        )
    journal = journal.cut(1 + _n_to_keep(setting, journal)) if journal.steps else journal
    for step in journal.steps:
        on_step(step.record, total)
    progress = _replay(setting, state, journal)
    if not journal.steps:
        record, arrays = _baseline_record(progress.base)
        journal.append(record, arrays, {})
        on_step(record, total)
    if journal.steps and _ends(setting, journal.steps[-1].record):
        return workdir
    made: dict[int, Made] = {}
    for number in range(max(len(journal.steps), 1), total + 1):
        if setting.edits_at_once > 1 and (number - 1) % setting.edits_at_once == 0:
            made = _edit_together(setting, progress, number)
        progress, record, edit = _step(setting, progress, number, made.get(number))
        written, is_snapshot = _written(setting, progress, edit, number)
        record |= {"snapshot": True} if is_snapshot else {}
        journal.append(record, *(pack_edit(written) if written else ({}, {})))
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


def _replay(setting: Setting, state: Any, journal: Journal) -> Progress:
    """The model and state that the journal's kept edits give."""
    model = setting.unedited
    if not journal.steps:
        return Progress(model, state, perplexity(model, setting.texts))
    base = read_baseline(journal.steps[0])
    for step in journal.steps[1:]:
        kept, is_snapshot = step.record["kept"], step.record.get("snapshot", False)
        if setting.single or step.arrays is None or not (kept or is_snapshot):
            continue
        edit = read_edit(step.arrays)
        model = rebuild(model, [edit]) if is_snapshot else apply(model, edit)
        if kept:
            state = setting.editor.absorb(state, edit)
    return Progress(model, state, base)


def _written(setting: Setting, progress: Progress, edit: Edit | None, number: int) -> tuple[Edit | None, bool]:
    """What the journal gets of a step: its edit or, with snapshot_every > 1, what the state learns and now and then a snapshot.

    A snapshot is the whole change of every layer since the unedited model. The weights between two of them are in no file:
    a study that was interrupted there does these steps again, with the same result.
    """
    if setting.snapshot_every == 1:
        return edit, False
    memory = edit.memory if edit else {}
    if number % setting.snapshot_every and number < len(setting.batches):
        return make_edit(setting.unedited, [], memory), False
    overlay = progress.model.overlay
    deltas = []
    for weight, layers in setting.editor.slots.items():
        for layer in layers:
            slot = int(overlay.slot[weight][layer])
            deltas.append(Dense(weight, layer, np.asarray(overlay.delta[weight][slot])))
    return make_edit(setting.unedited, deltas, memory), True


def _n_to_keep(setting: Setting, journal: Journal) -> int:
    """How many of a journal's edits a study goes on from: up to the last snapshot, or without the lot that was not finished."""
    n_done = len(journal.steps) - 1
    if setting.snapshot_every > 1:
        return max((step.record["step"] for step in journal.steps if step.record.get("snapshot")), default=0)
    return n_done if n_done == len(setting.batches) else n_done - n_done % setting.edits_at_once


def _edit_together(setting: Setting, progress: Progress, first: int) -> dict[int, Made]:
    """The edits of the steps from `first` on that are made at once; none where one of their requests cannot be edited."""
    numbers = range(first, min(first + setting.edits_at_once, len(setting.batches) + 1))
    requests = [request for number in numbers for request in setting.batches[number - 1]]
    began = time.perf_counter()
    try:
        assert setting.editor.each is not None
        edits = setting.editor.each(progress.model, requests, progress.state)
        before = facts(setting.unedited, requests)
    except ValueError:  # whose fault it is shows when they are edited one by one
        return {}
    time_s = (time.perf_counter() - began) / len(edits)
    return {
        number: Made(edit, info, fact, time_s, first) for number, (edit, info), fact in zip(numbers, edits, before, strict=True)
    }


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


def _step(setting: Setting, progress: Progress, number: int, made: Made | None) -> tuple[Progress, dict[str, Any], Edit | None]:
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
        if made is None:
            edit, state, info = setting.editor.edit(progress.model, batch, progress.state)
            watch.lap("edit")
        else:
            edit, state, info = made.edit, progress.state, made.info
            watch.laps["edit"] = round(made.time_s, 4)
            record["lot"] = made.lot
        edited = apply(progress.model, edit)
        watch.lap("apply")
        before = mean_fact(facts(setting.unedited, batch)) if made is None else made.before
        fact = mean_fact(facts(edited, batch))
        watch.lap("facts")
        says = generate(edited, [question], max_new_tokens=SAYS_TOKENS)[0].removeprefix(question)
        watch.lap("generate")
    except ValueError as error:  # this request cannot be edited or measured; the study goes on without it
        return progress, record | {"error": str(error), "time_s": watch.read()}, None
    due = number % setting.perplexity_every == 0 or number == len(setting.batches)
    after = perplexity(edited, setting.texts) if due else None
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
