"""Downstream tasks by lm-eval (PIQA, LAMBADA, HellaSwag, MMLU, ...).

The papers measure them beside the perplexity.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.did_you_mean import did_you_mean
from jaxedit.distributed import is_first_process
from jaxedit.files import local_path
from jaxedit.metrics.task_code import check_task_code, check_unsafe, sandboxed_templates
from jaxedit.metrics.task_files import check_output, write_files
from jaxedit.models.model import Model

SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


class PromptSettings(NamedTuple):
    """How items become prompts.

    Attributes:
      num_fewshot: examples before each item; None: as each task says.
      apply_chat_template: whether prompts are put into the model's chat template.
      seed: of lm-eval's random choices, such as the examples; None: lm-eval's own.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool = False
    seed: int | None = None


def evaluate_tasks(
    model: Model,
    tasks: list[str],
    *,
    limit: int | None = None,
    task_path: str | os.PathLike[str] | None = None,
    prompts: PromptSettings | None = None,
    output_path: str | os.PathLike[str] | None = None,
    log_samples: bool = False,
) -> dict[str, dict[str, Any]]:
    """Evaluate a model on tasks that lm-eval knows by name, or finds in a directory.

    Args:
      model: with or without edits.
      tasks: their names.
      limit: at most so many items of each; absent: all.
      task_path: a directory of task files (.yaml), beside lm-eval's own.
      prompts: how items become prompts; absent: as lm-eval does by itself.
      output_path: a folder for lm-eval's own files, results_*.json in it or a folder of it; or, as
        lm-eval takes it, a name that ends in .json, behind which the date is put.
      log_samples: whether each item is written there, too, to samples_TASK_*.jsonl.

    Returns:
      For each task, or group of tasks, its metrics by name, their standard errors as NAME_stderr,
      and the number of items n.

    Raises:
      ValueError: where lm-eval is not installed, a task is not known, asks for code to be run or
        for what the model cannot do, its data cannot be had, the model has no chat template, or
        output_path cannot be written.
      OSError: where the files could not be written whole.
    """
    prompts = prompts or PromptSettings()
    task_path = None if task_path is None else local_path(task_path)
    output_path = None if output_path is None else local_path(output_path)
    _check(tasks, limit, task_path)
    _check_prompts(model, prompts)
    check_output(output_path, log_samples)
    from lm_eval.loggers import EvaluationTracker  # slow to import

    tracker = None if output_path is None else EvaluationTracker(output_path=str(output_path))
    settings = dict(limit=limit, log_samples=log_samples, evaluation_tracker=tracker)
    found = _simple_evaluate(model, tasks, task_path, prompts, settings)
    if tracker is not None and output_path is not None and is_first_process():
        write_files(tracker, found, output_path)
    n_samples = found["n-samples"]
    return {
        task: _metrics_of(values, n_samples.get(task)) for task, values in found["results"].items()
    }


def _simple_evaluate(
    model: Model,
    tasks: list[str],
    task_path: Path | None,
    prompts: PromptSettings,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate by lm-eval's `simple_evaluate`; return its results.

    Args:
      model: with or without edits.
      tasks: names of tasks.
      task_path: a directory of task files.
      prompts: how items become prompts.
      settings: other arguments of `simple_evaluate`.
    """
    from lm_eval import evaluator  # slow to import

    from jaxedit.metrics.harness import HarnessModel

    manager = _find_tasks(tasks, task_path)

    from jinja2.sandbox import SecurityError

    # Data come from the hub, or from files that a task names.
    seeds = {} if prompts.seed is None else dict.fromkeys(SEEDS, prompts.seed)
    try:
        evaluate: Any = evaluator.simple_evaluate  # its decorator hides its arguments
        with sandboxed_templates():
            return evaluate(
                HarnessModel(model),
                model_args=f"pretrained={model.metadata.source}",  # names the folder of its files
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=prompts.num_fewshot,
                apply_chat_template=prompts.apply_chat_template,
                bootstrap_iters=1000,
                **seeds,
                **settings,
            )
    except SecurityError as error:
        raise ValueError(
            f"a template of {', '.join(tasks)} reaches for Python's own attributes, which no "
            f"template may ({error})"
        ) from error
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the data of {', '.join(tasks)} could not be had ({type(error).__name__}: {reason}); "
            "without a network describe local files in task files of your own "
            "(dataset_path: json) and give --task_path"
        ) from error


def _find_tasks(tasks: list[str], task_path: Path | None) -> Any:
    """Return lm-eval's manager of its own tasks and those of a directory.

    Raises:
      ValueError: where it does not know one of these, or one would run what the model writes.
    """
    from lm_eval.tasks import TaskManager  # slow to import

    manager = TaskManager(include_path=None if task_path is None else str(task_path))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        hint = did_you_mean(unknown[0], manager.all_tasks)
        raise ValueError(
            f"lm-eval knows no task {unknown[0]!r}{hint} Tasks of your own lie in --task_path"
        )
    check_unsafe(manager.task_index, tasks)
    return manager


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
    if task_path is not None:
        check_task_code(task_path)


def _check_prompts(model: Model, prompts: PromptSettings) -> None:
    if prompts.num_fewshot is not None and prompts.num_fewshot < 0:
        raise ValueError(f"num_fewshot={prompts.num_fewshot}: expected 0 or more examples")
    if prompts.apply_chat_template and model.tokenizer.chat_template is None:
        raise ValueError(
            f"apply_chat_template: the tokenizer of {model.metadata.source} has no chat template; "
            "take a model that was trained on chats, or leave it out"
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
