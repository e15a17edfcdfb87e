"""Figures that put several studies, models or sizes beside each other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL
from jaxedit.analyses.surrogate import FORMS, correlations
from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import DAMAGING, HARMLESS, draw_curves, new_figure
from jaxedit.reports.outcomes import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
LABEL_STEP = 0.045  # of the axes' height: what two labels beside each other need


def comparison_figure(outcomes: list[Outcome], curves: Sequence[Curve] = ()) -> "Figure":
    """Draws studies beside each other: perplexity over edits, or what one edit each has to weigh.

    Args:
      outcomes: of the studies.
      curves: to be drawn beside them.
    """
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    if all(len(outcome.made) == 1 for outcome in outcomes):
        _draw_trade_off(outcomes, axes)
    else:
        _draw_perplexities(outcomes, axes, curves)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_trade_off(outcomes: list[Outcome], axes: Any) -> None:
    """Efficacy against the perplexity ratio, a line for each part of the names before an "@"."""
    groups: dict[str, list[tuple[float, float, str]]] = {}
    for outcome in outcomes:
        (record,) = outcome.made
        group, _, value = outcome.name.partition("@")
        efficacy = (record.metrics or {})["efficacy_success"]  # None: the facts lack true answers
        ratio = float((record.perplexity or {})["ratio"])
        height = np.nan if efficacy is None else 100 * float(efficacy)
        groups.setdefault(group, []).append((ratio, height, value))
    colors = distinct_colors(len(groups))
    for i, (group, places) in enumerate(groups.items()):
        ratio, efficacy, values = zip(*places, strict=True)
        look = dict(marker=MARKERS[i % len(MARKERS)], markersize=5, color=colors[i], label=group)
        axes.plot(ratio, efficacy, "-", **look)
        for j, (x, y, text) in enumerate(zip(ratio, efficacy, values, strict=True)):
            offset = (4, (5, -9)[j % 2])  # turn about: neighbours lie close
            place = dict(xytext=offset, textcoords="offset points", fontsize=6, color=colors[i])
            axes.annotate(text, (x, y), **place)
    axes.set_xlabel("perplexity of the edited model / of the unedited one")
    axes.set_ylabel("efficacy (%)")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_perplexities(outcomes: list[Outcome], axes: Any, curves: Sequence[Curve]) -> None:
    """Perplexity against edits on a logarithmic axis, a line a study, named at its end."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    styles = [(marker, line) for line in ("-", "--", ":") for marker in MARKERS]
    colors = distinct_colors(len(outcomes))
    for i, outcome in enumerate(outcomes):
        measured = [(r.step, float(r.perplexity["mean"])) for r in outcome.made if r.perplexity]
        x, y = np.array([(0, outcome.unedited), *measured]).T
        marker, line = styles[i % len(styles)]
        y = np.where(np.isfinite(y), y, np.nan)
        look = dict(marker=marker, markersize=4, color=colors[i], label=outcome.name)
        axes.plot(x, y, line, **look)
    last = max(outcome.made[-1].step for outcome in outcomes if outcome.made)
    draw_curves(axes, curves, last)
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    if highest > COLLAPSE_PPL / 2:
        axes.axhline(COLLAPSE_PPL, color="0.4", linestyle="--", linewidth=1, zorder=1)
        place = dict(xycoords=("axes fraction", "data"), textcoords="offset points", va="bottom")
        look = dict(xytext=(2, 2), fontsize=8, color="0.3", ha="left")
        axes.annotate("collapse: 1000", (0, COLLAPSE_PPL), **place, **look)
    if highest < 10 * lowest:  # powers of ten alone would leave the axis without a number
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("edits")
    axes.set_ylabel("perplexity (mean over texts)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_line_ends(axes)


def distinct_colors(n: int) -> list[Any]:
    """Returns n colours that are told apart: a qualitative palette, a continuous one beyond it."""
    from matplotlib import colormaps

    if n <= 10:
        return [colormaps["tab10"](i) for i in range(n)]
    if n <= 20:
        return [colormaps["tab20"](i) for i in range(n)]
    return [colormaps["turbo"](i / (n - 1)) for i in range(n)]


def label_line_ends(axes: Any) -> None:
    """Names each labelled line right of the axes, beside its end; overlapping names move apart."""
    low, high = np.log10(axes.get_ylim())
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    ends = []
    for line in lines:
        y = np.asarray(line.get_ydata(), float)
        finite = y[np.isfinite(y)]
        ends.append((np.log10(finite[-1]) - low) / (high - low) if len(finite) else 0.0)
    heights = spread_apart(ends, LABEL_STEP)
    for line, end, height in zip(lines, ends, heights, strict=True):
        axes.annotate(
            line.get_label(),
            (1.0, end),
            xycoords="axes fraction",
            xytext=(1.05, height),
            textcoords="axes fraction",
            fontsize=8,
            color=line.get_color(),
            va="center",
            parse_math=False,
            arrowprops=dict(arrowstyle="-", color=line.get_color(), linewidth=0.6),
            annotation_clip=False,
        )


def spread_apart(places: Sequence[float], step: float) -> list[float]:
    """Moves places as little as possible (least squares) so that all are `step` apart, in order."""
    from sklearn.isotonic import isotonic_regression  # slow to import

    if not len(places):
        return []
    order = np.argsort(places, kind="stable")
    offsets = step * np.arange(len(places))
    moved = np.empty(len(places))
    # Less its offset, a place that is far enough from the one before only rises.
    moved[order] = isotonic_regression(np.array(places, float)[order] - offsets) + offsets
    return moved.tolist()


def surrogate_figure(rows: list[dict[str, Any]], metric: str = "acc") -> "Figure":
    """Draws each task's accuracy against both forms of perplexity, a form a row."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    found = correlations(rows, metric)
    n_rows, n_columns = len(FORMS), len(found) // len(FORMS)
    figure = new_figure(3.6 * n_columns, 2.8 * n_rows)
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, each in zip(all_axes.flat, found, strict=True):
        for row in rows:
            numbers, is_unedited = row["tasks"][each.task], row["level"] is None
            look = dict(fmt="*", color=DAMAGING, markersize=8, label="unedited")
            if not is_unedited:
                look = dict(fmt="o", color=HARMLESS, markersize=4.5)
            stderr = numbers.get(f"{metric}_stderr")
            axes.errorbar(row[each.form], numbers[metric], stderr, elinewidth=0.8, **look)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        form = "mean over texts" if each.form == "perplexity" else "pooled"
        axes.set_xlabel(f"perplexity ({form})")
        axes.set_ylabel(f"{each.task}: {metric}")
        axes.set_title(f"ρ = {each.rho:.2f} ({each.low:.2f} to {each.high:.2f})", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def scaling_figure(found: dict[str, list[tuple[int, float]]]) -> "Figure":
    """Draws seconds an edit against edits made before, and seconds a perplexity against tokens."""
    figure = new_figure(7.0, 3.0)
    all_axes = figure.subplots(1, 2)
    all_axes[0].set_xscale("log")
    titles = {"edits": ("edits made before", "edit"), "tokens": ("tokens", "perplexity")}
    for axes, (name, (title, what)) in zip(all_axes, titles.items(), strict=True):
        count, time_s = zip(*found[name], strict=True)
        axes.plot(count, time_s, "o-", color="0.2", markersize=4)
        axes.set_xlabel(title)
        axes.set_ylabel(f"seconds a{'n' if what == 'edit' else ''} {what}")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(0, 1.1 * max(time_s))
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[1].set_xlim(left=0)
    return figure
