"""The figure of a sequence's signals over their limits, above what the tasks say."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.signals import LIMITS, Signals
from jaxedit.reports.figures import DAMAGING, new_figure, whole_numbers
from jaxedit.reports.labels import EndLabel, label_line_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = 1e-3  # of a limit, that is drawn
HIGHEST = 1e4
TASK_COLORS = ("0.1", "0.5", "tab:blue", "tab:green")


def signals_figure(
    found: Sequence[Signals],
    evaluated: Sequence[Mapping[str, Any]] = (),
    fall: int | None = None,
    metric: str = "acc",
) -> "Figure":
    """Draw each signal's share of its limit after each edit, and the tasks' accuracies below.

    Args:
      found: the signals after each edit.
      evaluated: `step` and `tasks` of the models that were evaluated.
      fall: the first edit after which a task has fallen; None: none has.
      metric: of the tasks.
    """
    figure = new_figure(7.5, 6.0 if evaluated else 4.0)
    if evaluated:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_tasks(lower, evaluated, metric)
        bottom = lower
    else:
        bottom = upper = figure.subplots()
    _draw_signals(upper, found)
    for axes in {upper, bottom}:
        if fall is not None:
            axes.axvline(fall, color=DAMAGING, linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    bottom.set_xlabel("edit")
    bottom.xaxis.set_major_locator(whole_numbers())
    return figure


def _draw_signals(axes: "Axes", found: Sequence[Signals]) -> None:
    """Draw what is over the limit above 1; a ratio counts by what it is over 1."""
    import matplotlib

    colors = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    labels = []
    for color, (signal, limit) in zip(colors, LIMITS.items(), strict=False):
        known = [(each.step, each.values[signal]) for each in found if signal in each.values]
        if not known:
            continue
        steps, values = np.array(known, float).T
        origin = 1.0 if limit > 1 else 0.0
        share = np.clip((values - origin) / (limit - origin), LOWEST, HIGHEST)
        marker = "o" if len(known) < len(found) / 2 else None  # measured now and then
        axes.plot(steps, share, color=color, linewidth=1.2, marker=marker, ms=3.5, label=signal)
        labels.append(EndLabel(signal, steps[-1], share[-1], color))
    axes.axhline(1.0, color="0.5", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("share of its limit")
    label_line_ends(axes, labels)


def _draw_tasks(axes: "Axes", evaluated: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draw each task's accuracy with its standard error."""
    labels = []
    for i, task in enumerate(evaluated[0]["tasks"]):
        color = TASK_COLORS[i % len(TASK_COLORS)]
        steps = [row["step"] for row in evaluated]
        accuracies = [row["tasks"][task][metric] for row in evaluated]
        stderr = [row["tasks"][task].get(f"{metric}_stderr", np.nan) for row in evaluated]
        axes.errorbar(steps, accuracies, stderr, fmt="o-", color=color, markersize=3, linewidth=1)
        labels.append(EndLabel(task, steps[-1], accuracies[-1], color))
    axes.set_ylabel(metric)
    axes.set_ylim(bottom=0)
    label_line_ends(axes, labels)
