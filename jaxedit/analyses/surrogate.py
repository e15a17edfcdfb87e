"""Perplexity as a surrogate for what a model can do: downstream tasks at many perplexity levels.

As section 4 of arXiv 2402.09656: the models are edited ones. Each is a damaging edit of a study,
scaled down until the texts' perplexity is at a level that was fixed beforehand (the update's size
is what the damage depends on), so that levels are covered evenly and not as chance has it.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.analyses.evaluated import read_evaluated, write_evaluated
from jaxedit.datasets import read_texts
from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit, scale_edit
from jaxedit.metrics.baseline import check_baseline
from jaxedit.metrics.downstream import evaluate_tasks
from jaxedit.metrics.perplexity import perplexity, prepare
from jaxedit.models.model import Model
from jaxedit.models.score import PrefilledTexts
from jaxedit.study.journal import Step, read_journal
from jaxedit.study.replay import edited_model

# The papers' mean over texts, in which one text may outweigh all others, and over all tokens.
FORMS = ("perplexity", "pooled")
LEVELS = tuple(map(float, (*range(200, 500, 50), *range(500, 1000, 100), 1000, 2000, 5000)))
NEAR = 0.02  # a level is met where the perplexity is this close to it
TRIALS = 20
N_RESAMPLED = 2000


class Scaled(NamedTuple):
    """A step's edit scaled to a level: the factor, and the perplexity there in both forms."""

    step: int
    factor: float
    perplexity: float
    pooled: float


def measure_surrogate(
    folder: Path,
    tasks: list[str],
    *,
    levels: tuple[float, ...] | None = None,
    limit: int | None = None,
    task_path: Path | None = None,
    on_model: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Evaluate the unedited model and one model a level on downstream tasks.

    What is done is kept in the folder (surrogate.json) and not done again.

    Args:
      folder: of a study of single edits, some of which take the perplexity over the highest level.
      tasks: as `jaxedit.metrics.downstream.evaluate_tasks`.
      levels: perplexities over the unedited model's; None: those of LEVELS that are.
      limit: items of each task.
      task_path: a directory of task files.
      on_model: called with each row, those found in the folder as well.

    Returns:
      For each model its level (None: unedited), step, factor, perplexity in both forms, and the
      tasks' numbers.

    Raises:
      ValueError: on another study's folder, a level that no edit reaches, or as `evaluate_tasks`.
    """
    journal = read_journal(folder)
    asked = {"tasks": tasks, "limit": limit, "texts": journal.run["texts_sha256"]}
    path = folder / "surrogate.json"
    done = read_evaluated(path, asked, _typed_row)
    model = edited_model(folder, run_steps=[])
    texts: PrefilledTexts | None = None
    levels = levels_over(float((journal.steps[0].record.perplexity or {})["mean"]), levels)
    chosen = _choose(journal.steps, levels)
    rows = []
    for level in (None, *sorted(levels)):
        # What was evaluated before is read; else the model at the level is found and evaluated.
        row = next((row for row in done if row["level"] == level), None)
        if row is None:
            config = journal.run["config"]
            texts = texts or prepare(model, read_texts(config["texts"]), config["eval"]["bos"])
            if level is None:
                score = check_baseline(model, perplexity(model, texts), texts)
                edited, scaled = model, Scaled(0, 0.0, score.mean, score.pooled)
            else:
                step = chosen[level]
                edit = step.read_edit()
                scaled = scale_to_perplexity(model, edit, level, texts, step.record.step)
                edited = apply(model, scale_edit(edit, scaled.factor))
            numbers = evaluate_tasks(edited, tasks, limit=limit, task_path=task_path)
            # It is on disk before the next model is evaluated.
            row = {"level": level, **scaled._asdict(), "tasks": numbers}
            done = [*done, row]
            write_evaluated(path, asked, done)
        rows.append(row)
        on_model(row)
    return rows


def _typed_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a model's row out of JSON, where numbers that are not finite are texts."""
    named = {"level": row["level"], "tasks": dict(row["tasks"])}
    return {**row, **named, **{name: float(row[name]) for name in FORMS}}


def levels_over(unedited: float, asked: tuple[float, ...] | None) -> tuple[float, ...]:
    """Return the levels over the unedited model's perplexity; an edit that is scaled has no other.

    Raises:
      ValueError: on a level asked for that is not finite, or not over it; or where there is none.
    """
    bad = [level for level in asked or () if not unedited < level < math.inf]
    levels = asked or tuple(level for level in LEVELS if level > unedited)
    if bad or not levels:
        level = f"level {bad[0]:g}" if bad else f"levels up to {max(LEVELS):g}"
        raise ValueError(
            f"{level}: expected perplexities over the unedited model's, which is {unedited:g}"
        )
    return levels


def _choose(steps: list[Step], levels: tuple[float, ...]) -> dict[float, Step]:
    """Choose for each level an edit that goes beyond it, as many different ones as there are.

    Raises:
      ValueError: on a level that no edit reaches.
    """
    reached = [
        (float(step.record.perplexity["mean"]), step)
        for step in steps[1:]
        if step.record.perplexity
    ]
    reached.sort(key=lambda pair: pair[0])
    chosen: dict[float, Step] = {}
    for level in sorted(levels, reverse=True):  # few reach the highest
        beyond = [step for perplexity, step in reached if perplexity > level]
        if not beyond:
            highest = reached[-1][0] if reached else float("nan")
            raise ValueError(
                f"no edit of the study takes the perplexity over {level:g}; its highest is "
                f"{highest:g}"
            )
        unused = (step for step in beyond if step not in chosen.values())
        chosen[level] = next(unused, beyond[0])
    return chosen


def scale_to_perplexity(
    model: Model, edit: Edit, level: float, texts: PrefilledTexts, step: int
) -> Scaled:
    """Find by bisection the factor at which the edit takes the perplexity to a level.

    Raises:
      ValueError: where none of the factors tried comes near it.
    """
    low, high = 0.0, 1.0
    for _ in range(TRIALS):
        factor = (low + high) / 2
        score = perplexity(apply(model, scale_edit(edit, factor)), texts)
        if abs(score.mean / level - 1) < NEAR:
            return Scaled(step, factor, score.mean, score.pooled)
        low, high = (factor, high) if score.mean < level else (low, factor)
    raise ValueError(
        f"edit {step} does not take the perplexity to {level:g}: scaled by {factor:g} it is "
        f"{score.mean:g}"
    )


class Correlation(NamedTuple):
    """Spearman's rho between a form of perplexity and a task's accuracy.

    `low` and `high` are its 95 % bootstrap interval over the models.
    """

    task: str
    form: str
    rho: float
    low: float
    high: float


def tasks_with(rows: list[dict[str, Any]], metric: str = "acc") -> list[str]:
    """Return the tasks that have a metric."""
    return [task for task, numbers in rows[0]["tasks"].items() if metric in numbers]


def correlations(rows: list[dict[str, Any]], metric: str = "acc") -> list[Correlation]:
    """Correlate each task that has the metric with both forms of perplexity.

    Args:
      rows: of `measure_surrogate`.
      metric: of the tasks.

    Returns:
      A correlation for each form and task; none with fewer than four models.
    """
    from scipy import stats

    def rho_of(perplexities: np.ndarray, accuracies: np.ndarray) -> float:
        return float(np.asarray(stats.spearmanr(perplexities, accuracies)[0]))

    found = []
    tasks = tasks_with(rows, metric) if len(rows) >= 4 else []
    for form, task in itertools.product(FORMS, tasks):
        perplexities = np.array([row[form] for row in rows])
        accuracies = np.array([row["tasks"][task][metric] for row in rows])

        # Models are drawn anew with replacement; draws that are all alike have no correlation.
        rng = np.random.default_rng(0)
        resampled = []
        for _ in range(N_RESAMPLED):
            at = rng.integers(0, len(rows), len(rows))
            if len(set(accuracies[at])) > 1 and len(set(perplexities[at])) > 1:
                resampled.append(rho_of(perplexities[at], accuracies[at]))
        low, high = math.nan, math.nan
        if resampled:
            low, high = np.quantile(resampled, [0.025, 0.975])
        rho = rho_of(perplexities, accuracies)
        found.append(Correlation(task, form, rho, float(low), float(high)))
    return found
