"""The figures of one study; each function returns a matplotlib figure, `save_figure` writes it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL, damage_predictors, measured_damage
from jaxedit.files import write_atomic
from jaxedit.reports.curves import Curve
from jaxedit.reports.formatting import clip_for_plot, format_number, format_statistic, name_of_top
from jaxedit.reports.labels import EndLabel, PointLabel, label_line_ends, label_points
from jaxedit.reports.records import (
    edit_steps,
    is_single,
    outcome,
    retention_table,
    unedited_perplexity,
)
from jaxedit.rounding import ceil_div
from jaxedit.study.entry_names import editor_entry, name_methods
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HARMLESS, DAMAGING = "#1b6ca8", "#b3261e"
LEVEL_COLOR = "0.4"  # of lines at a fixed perplexity
CURVE_COLOR = "0.55"  # of curves that others measured
# What became of an edit -> marker, colour and size: told apart in greyscale as well.
MARKS = {
    "kept": ("o", HARMLESS, 4.5),
    "measured": ("o", HARMLESS, 4.5),
    "rolled back": ("X", DAMAGING, 9.0),
    "damaging": ("X", DAMAGING, 9.0),
    "kept, damaging": ("s", DAMAGING, 5.0),
    "undone": ("D", LEVEL_COLOR, 5.0),
}
MOST_NAMED = 6  # damaging edits that are named in the figure
MOST_TICKS = 12


def new_figure(width_in: float, height_in: float) -> "Figure":
    """Create an empty figure of this size in inches, drawn without a display."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width_in, height_in), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as path.png and path.pdf; each is there in whole or as it was.

    Raises:
      OSError: where one cannot be written.
    """
    for suffix in (".png", ".pdf"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix.removeprefix("."), dpi=200)
        write_atomic(path.with_suffix(suffix), content.getvalue())


def perplexity_figure(journal: Journal, curves: Sequence[Curve] = ()) -> "Figure":
    """Draw the perplexity after each edit on a logarithmic axis, readable in greyscale.

    A perplexity that is not finite is drawn at ten times the highest of the others.

    Args:
      journal: of a study with at least one edit.
      curves: to be drawn beside the study's own.
    """
    # What is drawn: the measured edits, their heights, and what became of them.
    last, single = edit_steps(journal)[-1].step, is_single(journal)
    steps = [record for record in edit_steps(journal) if record.perplexity]
    x = np.array([record.step for record in steps], int)
    unedited = unedited_perplexity(journal)
    measured = [float((record.perplexity or {})["mean"]) for record in steps]
    (base, *heights), top = clip_for_plot([unedited, *measured])
    y = np.array(heights)
    kept = np.array([record.was_kept for record in steps], bool)

    # The edits that were kept when they were made as a line, every edit as a mark, and the curves
    # of others.
    figure = new_figure(7.0, 3.6)
    axes = figure.subplots()
    if kept.any():
        axes.plot(np.r_[0, x[kept]], np.r_[base, y[kept]], color="0.45", linewidth=1, zorder=2)
    _draw_marks(axes, x, y, np.array([outcome(record, single) for record in steps], object))
    labels = draw_curves(axes, curves, last)
    beside = [perplexity for curve in curves for perplexity in curve.up_to(last).perplexity]

    # Axes.
    axes.set_yscale("log")
    highest = max([top / 3, 3 * base, *(3 * y), *beside])
    axes.set_ylim(bottom=min([base, *y, *beside]) / 2, top=highest)
    axes.set_xlim(-0.5, last + 0.8)
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set_xlabel("edit")
    axes.set_ylabel("perplexity (mean over texts)")
    config = journal.run["config"]
    each = "each edit of the unedited model" if single else "each edit"
    methods = name_methods(editor_entry(config))
    title = f"{methods} on {config['model']}: perplexity after {each}"
    axes.set_title(title, fontsize=10, parse_math=False, pad=20)
    axes.spines[["top", "right"]].set_visible(False)

    # Levels and curves are named right of the axes, the most damaging edits beside their marks.
    labels += draw_level(axes, base, f"unedited: {format_number(unedited)}", ":")
    if unedited <= COLLAPSE_PPL:  # else it was there before the edits
        labels += draw_level(axes, COLLAPSE_PPL, f"collapse: {COLLAPSE_PPL:g}", "--")
    at_top = name_of_top(record.perplexity or {} for record in [journal.steps[0].record, *steps])
    if at_top is not None:
        labels.append(EndLabel(at_top, None, top, LEVEL_COLOR))
    label_line_ends(axes, labels)
    damaging = [i for i, record in enumerate(steps) if record.guard_code is not None]
    worst = [
        PointLabel(f"{steps[i].subject} → {steps[i].target_new}", x[i], y[i])
        for i in sorted(damaging, key=lambda i: -y[i])
    ]
    label_points(axes, worst, np.column_stack([x, y]), MOST_NAMED)
    return figure


def _draw_marks(axes: "Axes", x: np.ndarray, y: np.ndarray, outcomes: np.ndarray) -> None:
    """Draw a mark for each edit that says what became of it, and a legend of the marks."""
    for name, (marker, color, size) in MARKS.items():
        chosen = outcomes == name
        if chosen.any():
            edge = "white" if marker == "X" else color
            look: Any = dict(color=color, markersize=size, markeredgecolor=edge, zorder=3)
            axes.plot(x[chosen], y[chosen], marker, label=name, **look)
    if len(x):
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)


def whole_numbers() -> Any:
    """Return a locator of ticks at round whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, steps=[1, 2, 5, 10])


def draw_level(axes: "Axes", perplexity: float, text: str, style: str) -> list[EndLabel]:
    """Draw a horizontal line at a perplexity; return its label."""
    axes.axhline(perplexity, color=LEVEL_COLOR, linestyle=style, linewidth=1, zorder=1)
    return [EndLabel(text, None, perplexity, LEVEL_COLOR)]


def draw_curves(axes: "Axes", curves: Sequence[Curve], last: int) -> list[EndLabel]:
    """Draw curves up to a number of edits; return their labels."""
    labels = []
    for i, curve in enumerate(curve.up_to(last) for curve in curves):
        if curve.edits:
            look: Any = dict(color=CURVE_COLOR, linewidth=1.2, label=curve.name, zorder=1)
            axes.plot(curve.edits, curve.perplexity, ("-.", ":")[i % 2], **look)
            labels.append(EndLabel(curve.name, curve.edits[-1], curve.perplexity[-1], CURVE_COLOR))
    return labels


def damage_prediction_figure(steps: list[StepRecord], single: bool = True) -> "Figure | None":
    """Draw the change of the loss against each predictor; None where there is no predictor."""
    predictors = damage_predictors(steps, single)
    if not predictors:
        return None
    damaging = measured_damage(steps).is_damaging
    figure = new_figure(3.2 * len(predictors), 3.0)
    all_axes = figure.subplots(1, len(predictors), sharey=True, squeeze=False)[0]
    groups = ((~damaging, "harmless", "o", HARMLESS), (damaging, "damaging", "X", DAMAGING))
    for axes, predictor in zip(all_axes, predictors, strict=True):
        value, change = predictor.value, predictor.change_nats
        finite = np.isfinite(value) & np.isfinite(change)
        # Before the points, whose margins depend on it; a change of the loss has a sign.
        if predictor.is_signed:
            axes.set_xscale("symlog", linthresh=0.01)
        else:
            finite &= value > 0
            axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=0.01)
        for chosen, label, marker, color in groups:
            drawn = chosen & finite
            look: Any = dict(color=color, markersize=5, markeredgecolor="white")
            axes.plot(value[drawn], change[drawn], marker, label=label, markeredgewidth=0.5, **look)
        axes.set_xlabel(predictor.name)
        axes.set_title(predictor_title(predictor.spearman, predictor.auc), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("change of the mean loss\n(nats a token)")
    all_axes[0].legend(frameon=False, fontsize=8)
    return figure


def predictor_title(spearman: float, auc: float) -> str:
    """Say how well a predictor ranks edits."""
    return f"Spearman {format_statistic(spearman, 2)}, AUC {format_statistic(auc, 3)}"


def retention_figure(journal: Journal) -> "Figure | None":
    """Draw P(new) of each fact as more are written; None with fewer than two evaluations."""
    edits, evaluations, values = retention_table(journal)
    if len(evaluations) < 2:
        return None
    figure = new_figure(6.0, min(8.0, 1.6 + 0.08 * len(edits)))
    axes = figure.subplots()
    mesh = axes.pcolormesh(values, cmap="viridis", vmin=0, vmax=1)
    axes.invert_yaxis()
    columns, rows = (np.arange(0, n, ceil_div(n, MOST_TICKS)) for n in values.shape[::-1])
    axes.set_xticks(columns + 0.5, [str(evaluations[i]) for i in columns])
    axes.set_yticks(rows + 0.5, [str(edits[i]) for i in rows])
    axes.set_xlabel("edits made")
    axes.set_ylabel("fact of edit")
    axes.set_title("P(new) of each fact as more are written", fontsize=10)
    figure.colorbar(mesh, ax=axes, label="P(new)")
    return figure
