"""Show which signal of a long sequence warned first, and how long before the tasks fell.

    jaxedit signals --run=runs/sequence
    jaxedit signals --run=runs/sequence --tasks=piqa,lambada_standard --every=20 --limit=200

Perplexity, KL, predicted change and relative perturbation are the journal's; norms, the cosine of
successive updates and the hyperspherical energy are computed from its edits. Tasks are evaluated
every --every edits and twice more where they fall; what is evaluated is kept in the run's folder.
"""

import sys
from pathlib import Path

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, path_flag
from jaxedit.cli._output import print_json, show_table


def define_flags() -> None:
    """Define the flags of this command."""
    path_flag("run", None, "a sequence of edits; results go to the same folder")
    flags.DEFINE_alias("workdir", "run")
    flags.DEFINE_list("tasks", [], "names of lm-eval's tasks, with commas between them")
    flags.DEFINE_integer("every", 20, "evaluate tasks every so many edits", lower_bound=1)
    flags.DEFINE_integer("limit", None, "at most so many items of each task", lower_bound=1)
    path_flag("task_path", None, "a directory with task files of your own")
    json_flag()


def main() -> None:
    """Compute, evaluate, draw and show."""
    from jaxedit.analyses.signals import fall_between, leads, read_signals
    from jaxedit.analyses.task_curve import measure_tasks
    from jaxedit.reports.figures import save_figure
    from jaxedit.reports.signals_figure import signals_figure
    from jaxedit.study.journal import read_journal
    from jaxedit.study.mirror import fetch_workdir

    if not FLAGS.run:
        raise ValueError("--run is missing: the folder of a sequence of edits")
    folder = fetch_workdir(FLAGS.run)
    found = read_signals(read_journal(folder))
    evaluated, falls = [], None
    if FLAGS.tasks:
        evaluated = measure_tasks(
            folder,
            FLAGS.tasks,
            FLAGS.every,
            limit=FLAGS.limit,
            task_path=Path(FLAGS.task_path) if FLAGS.task_path else None,
            on_model=lambda row: print(
                f"after edit {row['step']}: evaluated", file=sys.stderr, flush=True
            ),
        )
        falls = fall_between(evaluated)
    fall = falls and falls[1]
    rows = leads(found, fall)
    save_figure(signals_figure(found, evaluated, fall), folder / "signals")

    if FLAGS.json:
        signals = [{"step": each.step, **each.values} for each in found]
        shown = {"fall": fall, "leads": [row._asdict() for row in rows]}
        print_json({**shown, "signals": signals, "tasks": evaluated})
        return
    cells = [
        [
            row.signal,
            f"{row.limit:.3g}",
            "never" if row.step is None else f"edit {row.step}",
            "–" if row.n_before is None else f"{row.n_before}",
        ]
        for row in rows
    ]
    show_table(["signal", "limit", "passes it at", "edits before the fall"], cells)
    if FLAGS.tasks:
        print(
            "\nNo task falls." if fall is None else f"\nThe first task has fallen by edit {fall}."
        )
    print(f"Figure: {folder / 'signals.png'}")
