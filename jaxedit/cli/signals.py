"""Show which signal of a long sequence warned first, and how long before the tasks fell.

    jaxedit signals --run=runs/sequence
    jaxedit signals --run=runs/sequence --tasks=piqa,lambada_standard --every=20 --limit=200
    jaxedit signals --run=runs/signals               all sequences of a comparison

Perplexity, KL, predicted change and relative perturbation are the journal's; norms, the cosine of
successive updates and the hyperspherical energy are computed from its edits. Tasks are evaluated
every --every edits and twice more where they fall; what is evaluated is kept in the run's folder.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, path_flag
from jaxedit.cli._output import print_json, show_table

if TYPE_CHECKING:
    from jaxedit.analyses.signals import Lead, StudySignals


def define_flags() -> None:
    """Define the flags of this command."""
    path_flag("run", None, "a sequence of edits, or a folder of several; results go there")
    flags.DEFINE_alias("workdir", "run")
    flags.DEFINE_list("tasks", [], "names of lm-eval's tasks, with commas between them")
    flags.DEFINE_integer("every", 20, "evaluate tasks every so many edits", lower_bound=1)
    flags.DEFINE_integer("limit", None, "at most so many items of each task", lower_bound=1)
    path_flag("task_path", None, "a directory with task files of your own")
    json_flag()


def main() -> None:
    """Compute, evaluate, draw and show."""
    from jaxedit.analyses.signals import StudySignals, leads, read_signals
    from jaxedit.reports.figures import save_figure
    from jaxedit.reports.signals_figure import signals_figure
    from jaxedit.reports.studies import study_folders
    from jaxedit.study.journal import read_journal
    from jaxedit.study.mirror import fetch_workdir

    if not FLAGS.run:
        raise ValueError("--run is missing: the folder of a sequence of edits, or of several")
    folder = fetch_workdir(FLAGS.run)
    folders = study_folders(folder)
    found = [read_signals(read_journal(each)) for each in folders]  # all, before tasks take hours
    studies = [
        StudySignals(place.name, signals, _measure_tasks(place))
        for place, signals in zip(folders, found, strict=True)
    ]
    save_figure(signals_figure(studies), folder / "signals")
    leads_of = {study.name: leads(study) for study in studies}
    if FLAGS.json:
        print_json([_to_json(study, leads_of[study.name]) for study in studies])
        return
    _show(studies, leads_of)
    print(f"Figure: {folder / 'signals.png'}")


def _measure_tasks(folder: Path) -> list[dict[str, Any]]:
    """Evaluate the tasks of --tasks along a sequence."""
    from jaxedit.analyses.task_curve import measure_tasks

    if not FLAGS.tasks:
        return []
    return measure_tasks(
        folder,
        FLAGS.tasks,
        FLAGS.every,
        limit=FLAGS.limit,
        task_path=Path(FLAGS.task_path) if FLAGS.task_path else None,
        on_model=lambda row: print(
            f"{folder.name}, after edit {row['step']}: evaluated", file=sys.stderr, flush=True
        ),
    )


def _to_json(study: "StudySignals", leads: list["Lead"]) -> dict[str, Any]:
    return {
        "study": study.name,
        "fall": study.fall,
        "leads": [lead._asdict() for lead in leads],
        "signals": [{"step": each.step, **each.values} for each in study.found],
        "tasks": study.evaluated,
    }


def _show(studies: list["StudySignals"], leads_of: dict[str, list["Lead"]]) -> None:
    """Print when each signal passes its limit, a column a study, and when the tasks fall."""
    from jaxedit.analyses.signals import LIMITS

    def cell(lead: "Lead | None") -> str:
        if lead is None:
            return "not measured"
        if lead.step is None:
            return "never"
        if lead.n_before is None:
            return f"edit {lead.step}"
        when = "before" if lead.n_before >= 0 else "after"
        return f"edit {lead.step}, {abs(lead.n_before)} {when}"

    found = {name: {lead.signal: lead for lead in leads} for name, leads in leads_of.items()}
    cells = [
        [signal, f"{limit:.3g}", *(cell(found[study.name].get(signal)) for study in studies)]
        for signal, limit in LIMITS.items()
    ]
    names = [study.name for study in studies]
    show_table(["signal", "limit", *names], cells, left=("signal",))
    for study in studies:
        if study.evaluated:
            said = (
                "no task falls" if study.fall is None else f"a task has fallen by edit {study.fall}"
            )
            print(f"{study.name}: {said}")
