"""What a model can do along a sequence: tasks every so many edits, and where they fall."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxedit.analyses.evaluated import read_evaluated, write_evaluated
from jaxedit.analyses.signals import check_metric, evaluated_steps, fall_between
from jaxedit.metrics.downstream import evaluate_tasks
from jaxedit.study.digests import digest
from jaxedit.study.journal import read_journal
from jaxedit.study.replay import edited_model


def measure_tasks(
    folder: Path,
    tasks: list[str],
    every: int,
    *,
    limit: int | None = None,
    task_path: Path | None = None,
    on_model: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Evaluate the models of a sequence on tasks, also twice where the first task falls.

    What is done is kept in the folder (signals.json) and not done again.

    Args:
      folder: of a sequence.
      tasks: as `jaxedit.metrics.downstream.evaluate_tasks`.
      every: so many edits.
      limit: items of each task, the same ones of every model.
      task_path: a directory of task files.
      on_model: called with each row, those found in the folder as well.

    Returns:
      `step` (0: the unedited model), a digest of the `edits` that it has, and the `tasks`' numbers,
      in the order of the steps.

    Raises:
      ValueError: on another study's folder, or as `evaluate_tasks`.
    """
    journal = read_journal(folder)
    texts, own_tasks = journal.run["texts_sha256"], task_path and str(task_path)
    asked = {"tasks": tasks, "limit": limit, "task_path": own_tasks, "texts": texts}
    path = folder / "signals.json"
    rows = {row["step"]: row for row in read_evaluated(path, asked, _typed_row)}
    n_steps = journal.steps[-1].record.step
    kept = journal.kept_numbers

    def measure(steps: list[int]) -> list[dict[str, Any]]:
        for step in steps:
            edits = digest([each for each in kept if each <= step])
            if step not in rows or rows[step]["edits"] != edits:  # none, or some were undone since
                chosen: dict = {"after_step": step} if step else {"run_steps": []}
                model = edited_model(folder, **chosen)
                numbers = evaluate_tasks(model, tasks, limit=limit, task_path=task_path)
                check_metric(numbers)
                rows[step] = {"step": step, "edits": edits, "tasks": numbers}
                # It is on disk before the next model is evaluated.
                write_evaluated(path, asked, [rows[step] for step in sorted(rows)])
            on_model(rows[step])
        return [rows[step] for step in sorted(steps)]

    regular = evaluated_steps(n_steps, every)
    falls = fall_between(measure(regular))
    if falls is None:
        return [rows[step] for step in regular]
    between = evaluated_steps(n_steps, every, falls)
    measure([step for step in between if step not in regular])
    return [rows[step] for step in between]


def _typed_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"step": int(row["step"]), "edits": str(row["edits"]), "tasks": dict(row["tasks"])}
