"""The figure of sequences' signals over their limits, beside what the tasks say."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.signals import LIMITS, Signals, StudySignals
from jaxedit.reports.figures import DAMAGING, new_figure, whole_numbers
from jaxedit.reports.labels import EndLabel, label_line_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = 1e-2  # of a limit, that is drawn
HIGHEST = 1e4
TASK_COLORS = ("0.1", "0.5", "tab:blue", "tab:green")


def signals_figure(studies: Sequence[StudySignals], metric: str = "acc") -> "Figure":
    """Draw each signal's share of its limit after each edit, and beside it the tasks' accuracies.

    Args:
      studies: a row each; its name is above where there are several.
      metric: of the tasks.
    """
    has_tasks = any(study.evaluated for study in studies)
    figure = new_figure(10.0 if has_tasks else 6.5, 3.2 * len(studies))
    ratios = (3, 2) if has_tasks else (1,)
    grid: Any = dict(sharex="row", squeeze=False, width_ratios=ratios)
    for study, (left, *right) in zip(
        studies, figure.subplots(len(studies), len(ratios), **grid), strict=True
    ):
        _draw_signals(left, study.found)
        if study.evaluated:
            _draw_tasks(right[0], study.evaluated, metric)
        elif right:
            right[0].remove()
        for axes in (left, *right) if study.evaluated else (left,):
            if study.fall is not None:
                axes.axvline(study.fall, color=DAMAGING, linewidth=0.8, linestyle=":")
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel("edit")
            axes.xaxis.set_major_locator(whole_numbers())
        if len(studies) > 1:
            left.set_title(study.name, fontsize=9, loc="left")
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
