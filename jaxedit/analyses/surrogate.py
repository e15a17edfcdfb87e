"""Is perplexity a surrogate for what a model can do: models at many perplexity levels, each on
downstream tasks.

As section 4 of arXiv 2402.09656: the models are edited ones. Each is a damaging edit of a study,
scaled down until the texts' perplexity is at a level that was fixed beforehand (the update's size
is what the damage depends on), so that levels are covered evenly and not as chance has it."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.datasets import read_texts
from jaxedit.edits.edit import Edit, apply, scale
from jaxedit.edits.serialise import read_edit
from jaxedit.files import to_json, write_atomic
from jaxedit.metrics.downstream import evaluate_tasks
from jaxedit.metrics.perplexity import perplexity, prepare
from jaxedit.models.model import Model
from jaxedit.models.score import PrefilledTexts
from jaxedit.study.journal import read_journal
from jaxedit.study.replay import edited_model

FORMS = (
    "perplexity",
    "pooled",
)  # the papers' mean over texts, in which one text may outweigh all others, and over all tokens
LEVELS = (
    200.0,
    250.0,
    300.0,
    350.0,
    400.0,
    450.0,
    500.0,
    600.0,
    700.0,
    800.0,
    900.0,
    1000.0,
    2000.0,
    5000.0,
)
NEAR = 0.02  # a level is met where the perplexity is this close to it
TRIALS = 20
N_RESAMPLED = 2000


class Scaled(NamedTuple):
    """An edit of the study, by step, and the factor that takes the perplexity to a level; the
    perplexity in both forms.
    """

    step: int
    factor: float
    perplexity: float
    pooled: float


def measure_surrogate(
    folder: Path,
    tasks: list[str],
    *,
    levels: tuple[float, ...] = LEVELS,
    limit: int | None = None,
    task_path: Path | None = None,
    on_model: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Evaluates the unedited model and one model a level; what is done is kept in the folder and
    not done again.

    Args:
      folder: of a study of single edits, some of which take the perplexity over the highest level.
      tasks: as `jaxedit.metrics.downstream.evaluate_tasks`.
      levels: perplexities.
      limit: items of each task.
      task_path: a directory of task files.
      on_model: called with each row, those found in the folder as well.

    Returns:
      For each model its level (None: unedited), step, factor, perplexity in both forms, and the
      tasks' numbers.

    Raises:
      ValueError: on another study's folder, a level that no edit reaches, or as `downstream`.
    """
    journal = read_journal(folder)
    asked = {"tasks": tasks, "limit": limit, "texts": journal.run["texts_sha256"]}
    path = folder / "surrogate.json"
    done = _read(path, asked)
    model = edited_model(folder, steps=[])
    texts: PrefilledTexts | None = None
    chosen = _choose(journal.steps, levels)
    rows = []
    for level in (None, *sorted(levels)):
        row = next((row for row in done if row["level"] == level), None)
        if row is None:
            texts = texts or prepare(model, read_texts(journal.run["config"]["texts"]))
            score = perplexity(model, texts)
            edited, scaled = model, Scaled(0, 0.0, score.mean, score.pooled)
            if level is not None:
                edit = read_edit(_arrays(journal.steps, chosen[level]))
                scaled = scale_to_perplexity(model, edit, level, texts, chosen[level])
                edited = apply(model, scale(edit, scaled.factor))
            row = {
                "level": level,
                **scaled._asdict(),
                "tasks": evaluate_tasks(edited, tasks, limit=limit, task_path=task_path),
            }
            done = [*done, row]
            write_atomic(
                path,
                (json.dumps(to_json({"asked": asked, "models": done}), indent=1) + "\n").encode(),
            )
        rows.append(row)
        on_model(row)
    return rows


def _read(path: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The models that were evaluated before, for the same tasks."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["asked"] != to_json(asked):
        raise ValueError(
            f"{path} is of other tasks, items or texts ({found['asked']}); remove it to begin anew"
        )
    return found["models"]


def _choose(steps: list, levels: tuple[float, ...]) -> dict[float, int]:
    """For each level a step whose edit goes beyond it, as many different ones as there are."""
    reached = {
        s.record["step"]: float(s.record["perplexity"]["mean"])
        for s in steps[1:]
        if "perplexity" in s.record
    }
    chosen: dict[float, int] = {}
    for level in sorted(levels, reverse=True):  # few reach the highest
        beyond = sorted(
            (number for number, ppl in reached.items() if ppl > level),
            key=lambda number: reached[number],
        )
        if not beyond:
            raise ValueError(
                f"no edit of the study takes the perplexity over {level:g}; its highest is {max(reached.values()):g}"
            )
        chosen[level] = next(
            (number for number in beyond if number not in chosen.values()), beyond[0]
        )
    return chosen


def _arrays(steps: list, number: int) -> Path:
    return next(step.arrays for step in steps[1:] if step.record["step"] == number)


def scale_to_perplexity(
    model: Model, edit: Edit, level: float, texts: PrefilledTexts, step: int
) -> Scaled:
    """Finds by bisection the factor at which the edit takes the perplexity to a level.

    Raises:
      ValueError: where the whole edit stays under it.
    """
    low, high = 0.0, 1.0
    for _ in range(TRIALS):
        factor = (low + high) / 2
        score = perplexity(apply(model, scale(edit, factor)), texts)
        if abs(score.mean / level - 1) < NEAR:
            break
        low, high = (factor, high) if score.mean < level else (low, factor)
    if low > 0.999:
        raise ValueError(f"edit {step} does not take the perplexity to {level:g}")
    return Scaled(step, factor, score.mean, score.pooled)


class Correlation(NamedTuple):
    """Spearman's rho between a form of perplexity and a task's accuracy, with a bootstrap interval
    of 95 % over the models.
    """

    task: str
    form: str
    rho: float
    low: float
    high: float


def correlations(rows: list[dict[str, Any]], metric: str = "acc") -> list[Correlation]:
    """Of each task that has the metric, in both forms of perplexity; none with fewer than four
    models.
    """
    from scipy import stats

    found = []
    tasks = [
        task for task, numbers in rows[0]["tasks"].items() if metric in numbers and len(rows) >= 4
    ]
    for form, task in itertools.product(FORMS, tasks):
        ppl, value = (
            np.array(column)
            for column in zip(*((r[form], r["tasks"][task][metric]) for r in rows), strict=True)
        )
        rho = float(np.asarray(stats.spearmanr(ppl, value)[0]))
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(N_RESAMPLED):
            at = rng.integers(0, len(ppl), len(ppl))
            if len(set(value[at])) > 1 and len(set(ppl[at])) > 1:
                drawn.append(float(np.asarray(stats.spearmanr(ppl[at], value[at])[0])))
        low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (math.nan, math.nan)
        found.append(Correlation(task, form, rho, float(low), float(high)))
    return found
