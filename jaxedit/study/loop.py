"""A study: a fold of edits over a model that is scored after every step.

    edit -> apply -> measure -> guard (keep, roll back, stop) -> journal

A rejected edit leaves neither weights nor state. Resuming replays the journal's kept edits and
gives the same bits as a study that was never interrupted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxedit.edits.edit import Edit, apply
from jaxedit.edits.serialise import edit_to_arrays
from jaxedit.files import to_json
from jaxedit.metrics.facts import average_facts, evaluate_facts
from jaxedit.metrics.perplexity import Perplexity
from jaxedit.metrics.perturbation import total_relative_perturbation
from jaxedit.metrics.retention import evaluate_retention
from jaxedit.study.context import StudyContext, build_context
from jaxedit.study.journal import open_journal, read_steps
from jaxedit.study.replay import StudyState, ends_study, journalled_edit, n_steps_to_keep, replay
from jaxedit.study.step import (
    PROMPT_TOKENS,
    Measured,
    Stopwatch,
    continuations,
    due_now_and_then,
    edit_batch,
    edit_one,
    measure_now_and_then,
    perplexity_record,
)

Record = dict[str, Any]


def run_study(
    config: ConfigDict,
    workdir: Path,
    on_step: Callable[[dict[str, Any], int], None] = lambda record, total: None,
) -> Path:
    """Runs or continues a study; returns its folder.

    Args:
      config: as `jaxedit.study.config.default_config`.
      workdir: new, or a study's with the same configuration (n_facts may have grown, the mesh be
        another), which is then continued.
      on_step: called with each step's record, also those found in the journal, and the number of
        steps there will be.

    Raises:
      ValueError: on a configuration, model, facts or texts that cannot be used, or a folder of
        another study.
      OSError: where a step cannot be written; all steps before are whole.
    """
    context, state, run = build_context(config, workdir)
    journal = open_journal(workdir, run, may_differ=("config.n_facts", "config.mesh", "n_edits"))
    total = len(context.batches)
    if len(journal.steps) > len(context.numbers) + 1:
        raise ValueError(
            f"{workdir} holds {len(journal.steps) - 1} edits, n_facts={config.n_facts} asks for {total}: give another --workdir"
        )
    journal = journal.cut(1 + n_steps_to_keep(context, journal)) if journal.steps else journal
    for step in journal.steps:
        on_step(step.record, total)
    progress = replay(context, state, journal)
    if not journal.steps:
        record, arrays = _baseline_record(context, progress.base)
        journal.append(record, arrays, {})
        on_step(record, total)
    if journal.steps and ends_study(context, journal.steps[-1].record):
        return workdir
    measured: dict[int, Measured] = {}
    kept = [step.record["step"] for step in journal.steps[1:] if step.record["kept"]]
    for number in context.numbers[max(len(journal.steps) - 1, 0) :]:
        if context.edits_at_once > 1 and (number - 1) % context.edits_at_once == 0:
            measured = edit_batch(context, progress.model, progress.state, number)
        progress, record, edit = _step(context, progress, number, measured.get(number))
        written, is_snapshot = journalled_edit(context, progress, edit, number)
        record |= {"snapshot": True} if is_snapshot else {}
        kept += [number] if record["kept"] else []
        if context.retention_every and number % context.retention_every == 0:
            record["retention"] = evaluate_retention(progress.model, context.batches, kept)
        journal.append(record, *(edit_to_arrays(written) if written else ({}, {})))
        on_step(record, total)
        if ends_study(context, record):
            break
    if not context.single:
        _retain(context, progress, workdir)
    return workdir


def _retain(context: StudyContext, progress: StudyState, workdir: Path) -> None:
    """Writes how the kept edits' facts hold in the last model, unless that was done before."""
    kept = [
        step.record["step"] for step in read_steps(workdir, repair=False)[1:] if step.record["kept"]
    ]
    path = workdir / "retained.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["steps"] == kept:
        return
    held = [
        average_facts(evaluate_facts(progress.model, context.batches[n - 1], prefix=context.prefix))
        for n in kept
    ]
    path.write_text(
        json.dumps(to_json({"steps": kept, "facts": held}), ensure_ascii=False), encoding="utf-8"
    )


def _baseline_record(
    context: StudyContext, base: Perplexity
) -> tuple[dict[str, Any], dict[str, Any]]:
    record: Record = {
        "step": 0,
        "perplexity": {"mean": base.mean, "pooled": base.pooled, "n_broken": base.n_broken},
    }
    if context.prompts:
        record["continuations"] = continuations(context.unedited, context.prompts, PROMPT_TOKENS)
    return record, {"nll_nats": base.nll_nats, "n_tokens": base.n_tokens}


def _step(
    context: StudyContext, progress: StudyState, number: int, measured: Measured | None
) -> tuple[StudyState, Record, Edit | None]:
    """One edit, measured and judged; the progress changes only where it is kept.

    Args:
      context: the study's.
      progress: where it stands.
      number: of the step.
      measured: the edit with what was measured, where that was done together with others.
    """
    batch = context.batches[number - 1]
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
    predicted = context.screening.predicted.get(number)
    record |= {} if predicted is None else {"predicted": predicted}
    if number in context.screening.hard and context.screening.instead is None:
        return (
            progress,
            record
            | {
                "error": f"held back: predicted perturbation {predicted:.3g}",
                "held": True,
                "time_s": {},
            },
            None,
        )
    state = progress.state
    if measured is not None:
        edited = None  # written out only where something is due that needs it
    else:
        watch = Stopwatch()
        try:
            measured, edited, state = edit_one(context, progress.model, state, number, watch)
        except (
            ValueError
        ) as error:  # this request cannot be edited or measured; the study goes on without it
            return progress, record | {"error": str(error), "time_s": watch.read()}, None
    after, edit = measured.after, measured.edit
    due = due_now_and_then(context, number)
    if edited is None and (due or not context.single):
        edited = apply(progress.model, edit)
    guard = context.guard.trips(after, progress.base, edit.norm)
    kept = not context.single and (not guard or context.guard.action == "record")
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
        "relative_norm": edit.norm / context.weight_norm,
        **({} if edited is None else measure_now_and_then(context, edited, number, due)),
        "relative_perturbation": measured.push,
        **(
            {}
            if context.single or edited is None
            else {
                "relative_perturbation_of_all": total_relative_perturbation(context.probes, edited)
            }
        ),
        "time_s": measured.time_s,
    }
    return (
        (StudyState(edited, state, progress.base) if kept and edited is not None else progress),
        record,
        edit,
    )
