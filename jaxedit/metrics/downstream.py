"""Downstream tasks by lm-eval (PIQA, LAMBADA, HellaSwag, MMLU, ...).

The papers measure them beside the perplexity.
"""

import importlib.util
from pathlib import Path
from typing import Any

from jaxedit.did_you_mean import did_you_mean
from jaxedit.models.model import Model


def evaluate_tasks(
    model: Model, tasks: list[str], *, limit: int | None = None, task_path: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluate a model on tasks that lm-eval knows by name, or finds in a directory.

    Args:
      model: with or without edits.
      tasks: their names.
      limit: at most so many items of each; absent: all.
      task_path: a directory of task files (.yaml), beside lm-eval's own.

    Returns:
      For each task, or group of tasks, its metrics by name, their standard errors as NAME_stderr,
      and the number of items n.

    Raises:
      ValueError: where lm-eval is not installed, a task is not known, or its data cannot be had.
    """
    _check(tasks, limit, task_path)
    from lm_eval import evaluator  # slow to import
    from lm_eval.tasks import TaskManager

    from jaxedit.metrics.harness import HarnessModel

    # The tasks' names, lm-eval's own and those of the directory.
    manager = TaskManager(include_path=None if task_path is None else str(task_path))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        hint = did_you_mean(unknown[0], manager.all_tasks)
        raise ValueError(
            f"lm-eval knows no task {unknown[0]!r}{hint} Tasks of your own lie in --task_path"
        )

    # Data come from the hub, or from files that a task names.
    try:
        evaluate: Any = evaluator.simple_evaluate  # its decorator hides its arguments
        found = evaluate(
            HarnessModel(model),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the data of {', '.join(tasks)} could not be had ({type(error).__name__}: {reason}); "
            "without a network describe local files in task files of your own "
            "(dataset_path: json) and give --task_path"
        ) from error
    n_samples = found["n-samples"]
    return {
        task: _metrics_of(values, n_samples.get(task)) for task, values in found["results"].items()
    }


def _check(tasks: list[str], limit: int | None, task_path: Path | None) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            "downstream tasks need lm-eval, which is not installed: pip install 'jaxedit[eval]'"
        )
    if not tasks:
        raise ValueError("expected at least one task, e.g. piqa")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least one item, or nothing for all")
    if task_path is not None and not task_path.is_dir():
        raise ValueError(
            f"there is no directory {task_path}; expected one with task files (.yaml) for lm-eval"
        )


def _metrics_of(values: dict[str, Any], n_items: dict[str, int] | None) -> dict[str, Any]:
    """Pick a task's metrics, with the number of its items.

    lm-eval's "acc,none" becomes "acc", its "acc,FILTER" "acc/FILTER".
    """
    metrics: dict[str, Any] = {}
    for key, value in values.items():
        name, _, filter_name = key.partition(",")
        if filter_name and isinstance(value, int | float):
            metrics[name if filter_name == "none" else f"{name}/{filter_name}"] = float(value)
    if n_items is not None:
        metrics["n"] = int(n_items["effective"])
    return metrics
