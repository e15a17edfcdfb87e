"""A study: a fold of edits over a model that is scored after every step.

    edit -> apply -> measure -> guard (keep, roll back, stop) -> journal

A rejected edit leaves neither weights nor state. Resuming replays the journal's kept edits and gives the same bits as a
study that was never interrupted.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxedit.edits.edit import Edit, apply
from jaxedit.edits.serialise import pack_edit
from jaxedit.files import plain
from jaxedit.metrics.facts import facts, mean_fact
from jaxedit.metrics.perplexity import Perplexity
from jaxedit.metrics.perturbation import push_of_all
from jaxedit.metrics.retention import look_again
from jaxedit.study.context import Setting, set_up
from jaxedit.study.journal import open_journal, read_steps
from jaxedit.study.replay import Progress, _ends, _n_to_keep, _replay, _written
from jaxedit.study.step import (
    PROMPT_TOKENS,
    Measured,
    Stopwatch,
    continued,
    due_now_and_then,
    edit_lot,
    edit_one,
    measure_now_and_then,
    perplexity_record,
)

Record = dict[str, Any]


def study(
    config: ConfigDict, workdir: Path, on_step: Callable[[dict[str, Any], int], None] = lambda record, total: None
) -> Path:
    """Runs or continues a study; returns its folder.

    Args:
      config: as `jaxedit.study.config.default_config`.
      workdir: new, or a study's with the same configuration (n_facts may have grown, the mesh be another), which is
        then continued.
      on_step: called with each step's record, also those found in the journal, and the number of steps there will be.

    Raises:
      ValueError: on a configuration, model, facts or texts that cannot be used, or a folder of another study.
      OSError: where a step cannot be written; all steps before are whole.
    """
    setting, state, run = set_up(config, workdir)
    journal = open_journal(workdir, run, may_differ=("config.n_facts", "config.mesh", "n_edits"))
    total = len(setting.batches)
    if len(journal.steps) > len(setting.numbers) + 1:
        raise ValueError(
            f"{workdir} holds {len(journal.steps) - 1} edits, n_facts={config.n_facts} asks for {total}: give another --workdir"
        )
    journal = journal.cut(1 + _n_to_keep(setting, journal)) if journal.steps else journal
    for step in journal.steps:
        on_step(step.record, total)
    progress = _replay(setting, state, journal)
    if not journal.steps:
        record, arrays = _baseline_record(setting, progress.base)
        journal.append(record, arrays, {})
        on_step(record, total)
    if journal.steps and _ends(setting, journal.steps[-1].record):
        return workdir
    measured: dict[int, Measured] = {}
    kept = [step.record["step"] for step in journal.steps[1:] if step.record["kept"]]
    for number in setting.numbers[max(len(journal.steps) - 1, 0) :]:
        if setting.edits_at_once > 1 and (number - 1) % setting.edits_at_once == 0:
            measured = edit_lot(setting, progress.model, progress.state, number)
        progress, record, edit = _step(setting, progress, number, measured.get(number))
        written, is_snapshot = _written(setting, progress, edit, number)
        record |= {"snapshot": True} if is_snapshot else {}
        kept += [number] if record["kept"] else []
        if setting.retention_every and number % setting.retention_every == 0:
            record["retention"] = look_again(progress.model, setting.batches, kept)
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
    held = [mean_fact(facts(progress.model, setting.batches[n - 1], prefix=setting.prefix)) for n in kept]
    path.write_text(json.dumps(plain({"steps": kept, "facts": held}), ensure_ascii=False), encoding="utf-8")


def _baseline_record(setting: Setting, base: Perplexity) -> tuple[dict[str, Any], dict[str, Any]]:
    record: Record = {"step": 0, "perplexity": {"mean": base.mean, "pooled": base.pooled, "n_broken": base.n_broken}}
    if setting.prompts:
        record["continuations"] = continued(setting.unedited, setting.prompts, PROMPT_TOKENS)
    return record, {"nll_nats": base.nll_nats, "n_tokens": base.n_tokens}


def _step(setting: Setting, progress: Progress, number: int, measured: Measured | None) -> tuple[Progress, Record, Edit | None]:
    """One edit, measured and judged; the progress changes only where it is kept.

    Args:
      setting: the study's.
      progress: where it stands.
      number: of the step.
      measured: the edit with what was measured, where that was done together with others.
    """
    batch = setting.batches[number - 1]
    request = batch[0]
    record: Record = {
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
    predicted = setting.screening.predicted.get(number)
    record |= {} if predicted is None else {"predicted": predicted}
    if number in setting.screening.hard and setting.screening.instead is None:
        return (
            progress,
            record | {"error": f"held back: predicted perturbation {predicted:.3g}", "held": True, "time_s": {}},
            None,
        )
    state = progress.state
    if measured is not None:
        edited = None  # written out only where something is due that needs it
    else:
        watch = Stopwatch()
        try:
            measured, edited, state = edit_one(setting, progress.model, state, number, watch)
        except ValueError as error:  # this request cannot be edited or measured; the study goes on without it
            return progress, record | {"error": str(error), "time_s": watch.read()}, None
    after, edit = measured.after, measured.edit
    due = due_now_and_then(setting, number)
    if edited is None and (due or not setting.single):
        edited = apply(progress.model, edit)
    guard = setting.guard.trips(after, progress.base, edit.norm)
    kept = not setting.single and (not guard or setting.guard.action == "record")
    record |= {
        "kept": kept,
        "guard": guard,
        **({} if measured.lot is None else {"lot": measured.lot}),
        **({} if after is None else {"perplexity": perplexity_record(after, progress.base)}),
        "fact": measured.fact,
        "before": measured.before,
        "says_before": measured.says_before,
        "says": measured.says,
        "editor": measured.info,
        "edit_norm": edit.norm,
        "relative_norm": edit.norm / setting.weight_norm,
        **({} if edited is None else measure_now_and_then(setting, edited, number, due)),
        "relative_perturbation": measured.push,
        **({} if setting.single or edited is None else {"relative_perturbation_of_all": push_of_all(setting.probes, edited)}),
        "time_s": measured.time_s,
    }
    return (Progress(edited, state, progress.base) if kept and edited is not None else progress), record, edit
