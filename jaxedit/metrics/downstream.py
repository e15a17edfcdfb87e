"""Downstream tasks by lm-eval: what the papers measure beside the perplexity (PIQA, LAMBADA,
HellaSwag, MMLU, ...).
"""

import importlib.util
from pathlib import Path
from typing import Any

from jaxedit.did_you_mean import did_you_mean
from jaxedit.models.model import Model


def evaluate_tasks(
    model: Model, tasks: list[str], *, limit: int | None = None, task_path: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluates a model on tasks that lm-eval knows by name, or finds in a directory.

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
    from lm_eval import evaluator  # slow to import
    from lm_eval.tasks import TaskManager

    from jaxedit.metrics.harness import HarnessModel

    manager = TaskManager(include_path=None if task_path is None else str(task_path))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        hint = did_you_mean(unknown[0], manager.all_tasks)
        raise ValueError(
            f"lm-eval knows no task {unknown[0]!r}{hint} Tasks of your own lie in --task_path"
        )
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
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the data of {', '.join(tasks)} could not be had ({type(error).__name__}: {said}); without a network describe "
            "local files in task files of your own (dataset_path: json) and give --task_path"
        ) from error
    return {
        task: _numbers(values, found["n-samples"].get(task))
        for task, values in found["results"].items()
    }


def _numbers(values: dict[str, Any], n: dict[str, int] | None) -> dict[str, Any]:
    """The metrics without lm-eval's names of filters, and the number of items."""
    numbers = {}
    for key, value in values.items():
        name, _, kind = key.partition(",")
        if kind and isinstance(value, int | float):
            numbers[name if kind == "none" else f"{name}/{kind}"] = float(value)
    return numbers | ({} if n is None else {"n": int(n["effective"])})
