"""Figures that put several studies, models or sizes beside each other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL
from jaxedit.analyses.surrogate import FORMS, correlations, tasks_with
from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import (
    DAMAGING,
    HARMLESS,
    LEVEL_COLOR,
    draw_curves,
    draw_level,
    new_figure,
    whole_numbers,
)
from jaxedit.reports.formatting import clip_for_plot, format_statistic, name_of_top
from jaxedit.reports.labels import (
    BESIDE_RISING_LINE,
    EndLabel,
    PointLabel,
    label_line_ends,
    label_points,
)
from jaxedit.reports.studies import FinishedStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Any two are at least 26 apart in CIELAB, none is a grey, and all are legible on white (3 : 1).
COLORS = (
    "#1b6ca8",  # blue
    "#d1352b",  # red
    "#2e8b3d",  # green
    "#e07b00",  # orange
    "#8e44ad",  # purple
    "#7a4a1e",  # brown
    "#0f9d9d",  # teal
    "#e0559f",  # pink
    "#111111",  # black
    "#8a8f00",  # olive
    "#5b6ee1",  # periwinkle
    "#7f0f2e",  # burgundy
    "#0b4f3c",  # pine
    "#b07aa1",  # mauve
    "#2b2f8f",  # navy
)
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")
SHORTEST = 3  # studies' lengths that are so many times apart are drawn on a logarithmic axis
TICKS = (0, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


def comparison_figure(studies: list[FinishedStudy], curves: Sequence[Curve] = ()) -> "Figure":
    """Draw studies beside each other: perplexity over edits, or efficacy against perplexity.

    The latter where every study made one edit.

    Args:
      studies: at least one.
      curves: to be drawn beside them.
    """
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    if all(len(study.made) == 1 for study in studies):
        _draw_trade_off(studies, axes)
    else:
        _draw_perplexities(studies, axes, curves)
    return figure


def _look(i: int) -> dict[str, Any]:
    """Return how the i-th of several lines is drawn: no two alike, in greyscale as well."""
    line, marker = LINES[i // len(MARKERS) % len(LINES)], MARKERS[i % len(MARKERS)]
    return dict(linestyle=line, marker=marker, markersize=4, color=COLORS[i % len(COLORS)])


def _draw_trade_off(studies: list[FinishedStudy], axes: "Axes") -> None:
    """Draw efficacy against the perplexity ratio, a line for each part of a name before an "@"."""
    groups: dict[str, list[tuple[float, float, str]]] = {}
    for study in studies:
        (record,) = study.made
        group, _, value = study.name.partition("@")
        efficacy = (record.metrics or {})["efficacy_success"]  # None: the facts lack true answers
        percent = np.nan if efficacy is None else 100 * float(efficacy)
        ratio = float(record.perplexity["ratio"]) if record.perplexity else np.nan
        groups.setdefault(group, []).append((ratio, percent, value))

    # A line each group, and beside every point its value.
    values = []
    for i, (group, points) in enumerate(groups.items()):
        look = _look(i)
        ratios, percents, _ = zip(*points, strict=True)
        axes.plot(ratios, percents, label=group, **look)
        values += [PointLabel(value, x, y, look["color"]) for x, y, value in points]
    values = [label for label in values if np.isfinite([label.x, label.y]).all()]
    if max((label.x for label in values), default=1) > 10:
        axes.set_xscale("log")
    axes.margins(0.08)
    axes.set_xlabel("perplexity of the edited model / of the unedited model")
    axes.set_ylabel("efficacy (%)")
    axes.legend(frameon=False, fontsize=8, loc="best")
    if values:
        marks = np.array([(label.x, label.y) for label in values])
        label_points(axes, values, marks, places=BESIDE_RISING_LINE)


def _draw_perplexities(studies: list[FinishedStudy], axes: "Axes", curves: Sequence[Curve]) -> None:
    """Draw perplexity on a logarithmic axis, a line a study, named at its end.

    It is drawn against edits, or against facts where an edit may write several. What is not finite
    is drawn at ten times the highest of the others.
    """
    # A line a study, from the unedited model on.
    measured = [{0: study.unedited, **study.perplexities} for study in studies]
    perplexities = [perplexity for points in measured for perplexity in points.values()]
    clipped, top = clip_for_plot(perplexities)
    heights, labels = iter(clipped.tolist()), []
    for i, (study, points) in enumerate(zip(studies, measured, strict=True)):
        x, look = list(points), _look(i)
        y = [next(heights) for _ in x]
        axes.plot(x, y, label=study.name, **look)
        labels.append(EndLabel(study.name, x[-1], y[-1], look["color"]))
    written = [study.facts_after for study in studies]
    last = max((max(facts_after.values(), default=0) for facts_after in written), default=0)
    labels += draw_curves(axes, curves, last)

    # The perplexity at which a model counts as collapsed, where any comes near it.
    axes.set_yscale("log")
    was_there = any(study.unedited > COLLAPSE_PPL for study in studies)
    if axes.get_ylim()[1] > COLLAPSE_PPL / 2 and not was_there:
        labels += draw_level(axes, COLLAPSE_PPL, f"collapse: {COLLAPSE_PPL:g}", "--")
    records = [step.record for study in studies for step in study.journal.steps]
    at_top = name_of_top(record.perplexity for record in records if record.perplexity)
    if at_top is not None:
        labels.append(EndLabel(at_top, None, top, LEVEL_COLOR))
    _number_perplexities(axes)
    is_a_fact_each = all(step == n for facts_after in written for step, n in facts_after.items())
    axes.set_xlabel("edits" if is_a_fact_each else "facts written")
    axes.set_ylabel("perplexity (mean over texts)")
    _scale_lengths(axes, [max(points) for points in measured])
    label_line_ends(axes, labels)


def _scale_lengths(axes: "Axes", lengths: Sequence[int]) -> None:
    """Scale the axis of edits: by logarithms where a study is over SHORTEST times another.

    Args:
      axes: of the perplexities.
      lengths: how many edits, or facts, each study has.
    """
    from matplotlib.ticker import NullLocator

    if min(lengths) < 1 or max(lengths) < SHORTEST * min(lengths):
        axes.xaxis.set_major_locator(whole_numbers())
        return
    ticks = [n for n in TICKS if n <= max(lengths)]
    axes.set_xscale("symlog", linthresh=TICKS[1], linscale=0.5)
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left=0, right=1.05 * max(lengths))


def _number_perplexities(axes: "Axes") -> None:
    """Put numbers at an axis of less than a decade, on which powers of ten are too few."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    lowest, highest = axes.get_ylim()
    if highest < 10 * lowest:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")


def surrogate_figure(rows: list[dict[str, Any]], metric: str = "acc") -> "Figure":
    """Draw each task's accuracy against both forms of perplexity, a form a row.

    Args:
      rows: of `jaxedit.analyses.surrogate.measure_surrogate`.
      metric: of the tasks.

    Raises:
      ValueError: where no task has the metric.
    """
    tasks = tasks_with(rows, metric)
    if not tasks:
        known = ", ".join(rows[0]["tasks"])
        raise ValueError(f"none of the tasks {known} has the metric {metric!r}: nothing to draw")

    # A panel for each form of perplexity and task, its correlation above it.
    found = {(each.form, each.task): each for each in correlations(rows, metric)}
    figure = new_figure(3.6 * len(tasks), 2.8 * len(FORMS))
    all_axes = figure.subplots(len(FORMS), len(tasks), squeeze=False)
    for axes_of_form, form in zip(all_axes, FORMS, strict=True):
        for axes, task in zip(axes_of_form, tasks, strict=True):
            _draw_models(axes, rows, form, task, metric)
            if each := found.get((form, task)):
                low, high = format_statistic(each.low, 2), format_statistic(each.high, 2)
                title = f"Spearman's ρ = {format_statistic(each.rho, 2)} ({low} to {high})"
                axes.set_title(title, fontsize=9)
    all_axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def _draw_models(
    axes: "Axes", rows: list[dict[str, Any]], form: str, task: str, metric: str
) -> None:
    """Draw a task's accuracy with its standard error against a form of perplexity."""
    from matplotlib.ticker import LogLocator, NullFormatter

    unedited: Any = dict(fmt="*", color=DAMAGING, markersize=8, label="unedited")
    edited: Any = dict(fmt="o", color=HARMLESS, markersize=4.5, label="edited")
    for is_unedited, look in ((True, unedited), (False, edited)):
        models = [row for row in rows if (row["level"] is None) == is_unedited]
        if not models:
            continue
        x = [row[form] for row in models]
        y = [row["tasks"][task][metric] for row in models]
        stderr = [row["tasks"][task].get(f"{metric}_stderr", np.nan) for row in models]
        axes.errorbar(x, y, stderr, elinewidth=0.8, **look)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"perplexity ({'mean over texts' if form == 'perplexity' else 'pooled'})")
    axes.set_ylabel(f"{task}: {metric}")
    axes.spines[["top", "right"]].set_visible(False)


def scaling_figure(found: dict[str, list[tuple[int, float]]]) -> "Figure":
    """Draw seconds per edit against edits made before it, seconds per perplexity against tokens.

    Args:
      found: of `jaxedit.bench.scaling`: under "edits" and "tokens" the pairs (count, seconds).
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.0, 3.0)
    by_edits, by_tokens = figure.subplots(1, 2)
    titles = (("edits", "edits made before it", "edit"), ("tokens", "tokens", "perplexity"))
    for axes, (name, title, what) in zip((by_edits, by_tokens), titles, strict=True):
        counts, time_s = zip(*found[name], strict=True)
        axes.plot(counts, time_s, "o-", color="0.2", markersize=4)
        axes.set_xlabel(title)
        axes.set_ylabel(f"seconds per {what}")
        axes.set_ylim(0, 1.1 * max(time_s))
        axes.spines[["top", "right"]].set_visible(False)
    by_edits.set_xscale("log")
    by_tokens.set_xlim(left=0)
    by_tokens.xaxis.set_major_locator(MaxNLocator(nbins=5))
    for axes in (by_edits, by_tokens):
        axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure
