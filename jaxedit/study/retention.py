"""Retention: do the facts of earlier edits still hold after later ones; a heat map of fact x time."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.edits.journal import Journal
from jaxedit.edits.request import Request
from jaxedit.metrics.facts import facts, mean_fact
from jaxedit.models.model import Model

SHOWN = ("probability_new", "greedy_new", "efficacy")


def look_again(model: Model, batches: list[list[Request]], kept: list[int]) -> dict[str, dict[str, Any]]:
    """How the facts of kept edits hold in a model now: edit's number -> the entries of SHOWN, means over its requests."""
    return {str(number): {key: found[key] for key in SHOWN} for number, found in _means(model, batches, kept)}


def _means(model: Model, batches: list[list[Request]], kept: list[int]):
    """All requests in one call, then their means edit by edit."""
    requests = [request for number in kept for request in batches[number - 1]]
    found = iter(facts(model, requests) if requests else [])
    for number in kept:
        yield number, mean_fact([next(found) for _ in batches[number - 1]])


def table(journal: Journal, entry: str = "probability_new") -> tuple[list[int], list[int], np.ndarray]:
    """What the journal knows of retention: facts (edits' numbers), times (edits made), and the entry there, NaN where unknown.

    Only records that looked again say it: those of every `retention_every`-th edit.
    """
    records = [step.record for step in journal.steps[1:]]
    looks = [record for record in records if "retention" in record]
    times, numbers = [record["step"] for record in looks], [record["step"] for record in records if record.get("kept")]
    value_NT = np.full((len(numbers), len(times)), np.nan)
    for t, look in enumerate(looks):
        for n, number in enumerate(numbers):
            found = look["retention"].get(str(number), {}).get(entry)
            value_NT[n, t] = np.nan if found is None else float(found)
    return numbers, times, value_NT


def draw(journal: Journal, path: Path) -> bool:
    """The heat map of P(new) as path.png and path.pdf; whether there was one to draw."""
    numbers, times, value_NT = table(journal)
    if len(times) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.0, min(8.0, 1.6 + 0.08 * len(numbers))), layout="constrained")
    mesh = axis.pcolormesh(value_NT, cmap="viridis", vmin=0, vmax=1)
    axis.invert_yaxis()
    columns, rows = (np.unique(np.linspace(0, n - 1, min(n, 12)).astype(int)) for n in (len(times), len(numbers)))
    axis.set_xticks(columns + 0.5, [str(times[i]) for i in columns])
    axis.set_yticks(rows + 0.5, [str(numbers[i]) for i in rows])
    axis.set_xlabel("edits made")
    axis.set_ylabel("fact of edit")
    axis.set_title("P(new) of each fact as more are written", fontsize=10)
    figure.colorbar(mesh, ax=axis)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=200)
    pyplot.close(figure)
    return True
