"""Perplexity against downstream tasks, for models at many perplexity levels.

    jaxedit study --config=single_edits --config.facts=counterfact.json \\
        --config.texts=ME-PPL_50.json --workdir=runs/scan
    jaxedit surrogate --run=runs/scan --tasks=piqa,lambada_standard --limit=800

Each model is a damaging edit of the study, scaled down to a level. What is evaluated is kept in the
work directory, so that the same command goes on where it was interrupted. Needs lm-eval: pip
install 'jaxedit[eval]'.
"""

import sys
from pathlib import Path

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, path_flag
from jaxedit.cli._output import print_json, show_table


def define_flags() -> None:
    """Define the flags of this command."""
    path_flag("run", None, "a study of single edits; results go to the same folder")
    flags.DEFINE_alias("workdir", "run")
    flags.DEFINE_list("tasks", [], "names of lm-eval's tasks, with commas between them")
    flags.DEFINE_list(
        "levels",
        [],
        "perplexities; absent: fourteen from 200 to 5000, those over the unedited model's",
    )
    flags.DEFINE_integer("limit", None, "at most so many items of each task", lower_bound=1)
    path_flag("task_path", None, "a directory with task files of your own")
    json_flag()


def main() -> None:
    """Evaluate, correlate and draw."""
    from jaxedit.analyses.surrogate import correlations, measure_surrogate
    from jaxedit.reports.comparison_figures import surrogate_figure
    from jaxedit.reports.figures import save_figure
    from jaxedit.study.mirror import fetch_workdir

    if not FLAGS.run:
        raise ValueError("--run is missing: a study of single edits, some of them damaging")
    folder = fetch_workdir(FLAGS.run)
    try:
        levels = tuple(map(float, FLAGS.levels))
    except ValueError as error:
        raise ValueError(
            f"--levels={','.join(FLAGS.levels)}: expected perplexities with commas between them"
        ) from error

    # The unedited model and one model a level, on all tasks.
    rows = measure_surrogate(
        folder,
        FLAGS.tasks,
        levels=levels or None,
        limit=FLAGS.limit,
        task_path=Path(FLAGS.task_path) if FLAGS.task_path else None,
        on_model=lambda row: print(
            f"perplexity {row['perplexity']:,.1f}: evaluated", file=sys.stderr, flush=True
        ),
    )

    # The figure and the correlations.
    save_figure(surrogate_figure(rows), folder / "surrogate")
    found = correlations(rows)
    if FLAGS.json:
        print_json({"models": rows, "spearman": [each._asdict() for each in found]})
        return
    tasks = list(dict.fromkeys(each.task for each in found))
    cells = []
    for row in rows:
        accuracies = [f"{row['tasks'][task]['acc']:.4f}" for task in tasks]
        cells.append([f"{row['perplexity']:,.1f}", f"{row['pooled']:,.1f}", *accuracies])
    show_table(["perplexity", "pooled", *tasks], cells)
    for each in found:
        interval = f"95 % interval {each.low:.3f} to {each.high:.3f}"
        print(f"{each.task} against {each.form}: Spearman's rho {each.rho:.3f}, {interval}")
    print(f"Figure: {folder / 'surrogate.png'}")
