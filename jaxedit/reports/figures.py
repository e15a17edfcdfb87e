"""The figures of one study; each function returns a matplotlib figure, `save_figure` writes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL, damage_predictors, measured_damage
from jaxedit.reports.curves import Curve
from jaxedit.reports.formatting import clip_for_plot, format_number
from jaxedit.reports.records import edit_steps, is_single, retention_table, unedited_perplexity
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HARMLESS, DAMAGING = "#1b6ca8", "#b3261e"
MOST_NAMED = 6  # damaging edits that are named in the figure


def new_figure(width_in: float, height_in: float) -> "Figure":
    """Makes an empty figure of this size in inches, drawn without a display."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width_in, height_in), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as path.png and path.pdf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=200)


def perplexity_figure(journal: Journal, curves: Sequence[Curve] = ()) -> "Figure":
    """Draws the perplexity after each edit on a logarithmic axis, readable in greyscale.

    A perplexity that is not finite is drawn at ten times the highest of the others.

    Args:
      journal: of a study with at least one edit.
      curves: to be drawn beside the study's own.
    """
    from matplotlib.ticker import MaxNLocator

    # What is drawn: the measured edits, their heights, which are kept and which damaging.
    last, single = edit_steps(journal)[-1].step, is_single(journal)
    steps = [record for record in edit_steps(journal) if record.perplexity]
    x = np.array([record.step for record in steps], int)
    unedited = unedited_perplexity(journal)
    measured = [float((record.perplexity or {})["mean"]) for record in steps]
    (base, *heights), top = clip_for_plot([unedited, *measured])
    y = np.array(heights)
    kept = np.array([bool(record.kept) for record in steps], bool)
    damaging = np.array([record.guard_code is not None for record in steps], bool)

    # Levels: collapse, and the unedited model.
    figure = new_figure(7.0, 3.6)
    axes = figure.subplots()
    label = f"unedited: {format_number(unedited)}"
    for level, text, style in ((COLLAPSE_PPL, "collapse: 1000", "--"), (base, label, ":")):
        axes.axhline(level, color="0.4", linestyle=style, linewidth=1, zorder=1)
        place: Any = dict(
            xycoords=("axes fraction", "data"), textcoords="offset points", va="center"
        )
        axes.annotate(text, (1, level), xytext=(4, 0), fontsize=8, color="0.3", **place)

    # The kept edits as a line, every edit as a mark.
    if kept.any():
        axes.plot(np.r_[0, x[kept]], np.r_[base, y[kept]], color="0.45", linewidth=1, zorder=2)
    quiet = "each edit on the untouched model" if single else "kept"
    undone = "damaging" if single else "damaging, rolled back"
    for chosen, name, marker, color, size in (
        (~damaging, quiet, "o", HARMLESS, 4.5),
        (damaging & ~kept, undone, "X", DAMAGING, 9),
        (damaging & kept, "damaging, kept", "s", DAMAGING, 5),
    ):
        if chosen.any():
            look: Any = dict(color=color, markersize=size, label=name, zorder=3)
            edge = "white" if marker == "X" else color
            axes.plot(x[chosen], y[chosen], marker, markeredgecolor=edge, **look)
    beside = draw_curves(axes, curves, last)
    _name_worst(axes, steps, x, y, damaging, last)

    axes.set_yscale("log")
    highest = max([top / 3, 3 * base, *(3 * y), *beside])
    axes.set_ylim(bottom=min([base, *y, *beside]) / 2, top=highest)
    axes.set_xlim(-0.5, last + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("edit")
    axes.set_ylabel("perplexity (mean over texts)")
    config = journal.run["config"]
    title = f"{config['editor']['method'].upper()} on {config['model']}: perplexity after each edit"
    axes.set_title(title, fontsize=10, parse_math=False, pad=20)
    if steps or curves:
        axes.legend(
            frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3
        )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_curves(axes: Any, curves: Sequence[Curve], last: int) -> list[float]:
    """Draws curves up to a number of edits; returns the perplexities that are drawn."""
    drawn = [curve.up_to(last) for curve in curves]
    for i, curve in enumerate(drawn):
        look = dict(color="0.55", linewidth=1.2, label=curve.name, zorder=1)
        axes.plot(curve.edits, curve.perplexity, ("-.", ":")[i % 2], **look)
    return [perplexity for curve in drawn for perplexity in curve.perplexity]


def _name_worst(
    axes: Any,
    steps: list[StepRecord],
    x: np.ndarray,
    y: np.ndarray,
    damaging: np.ndarray,
    last: int,
) -> None:
    """Names the most damaging edits beside their marks, leaving out names that would overlap."""
    height = np.log10(y.max() / y.min()) + 1 if len(y) else 1
    named: list[tuple[float, float]] = []
    for i in np.flatnonzero(damaging)[np.argsort(-y[damaging])]:
        at = float(x[i] / max(last, 1)), float(np.log10(y[i]) / height)
        overlaps = any(abs(at[0] - a) < 0.35 and abs(at[1] - b) < 0.07 for a, b in named)
        if len(named) == MOST_NAMED or overlaps:
            continue
        named.append(at)
        right = x[i] < 0.75 * last
        axes.annotate(
            f"{steps[i].subject} → {steps[i].target_new}",
            (x[i], y[i]),
            textcoords="offset points",
            xytext=(7, 0) if right else (-7, 0),
            ha="left" if right else "right",
            va="center",
            fontsize=8,
            parse_math=False,
        )


def damage_prediction_figure(steps: list[StepRecord], single: bool = True) -> "Figure | None":
    """Draws the change of the loss against each predictor; None where there is no predictor."""
    predictors = damage_predictors(steps, single)
    if not predictors:
        return None
    damaging = measured_damage(steps).is_damaging
    figure = new_figure(3.2 * len(predictors), 3.0)
    all_axes = figure.subplots(1, len(predictors), sharey=True, squeeze=False)[0]
    groups = ((~damaging, "harmless", "o", HARMLESS), (damaging, "damaging", "X", DAMAGING))
    for axes, predictor in zip(all_axes, predictors, strict=True):
        value, change = predictor.value, predictor.change_nats
        finite = np.isfinite(value) & np.isfinite(change) & (value > 0)
        for chosen, label, marker, color in groups:
            drawn = chosen & finite
            look = dict(color=color, markersize=5, markeredgecolor="white", markeredgewidth=0.5)
            axes.plot(value[drawn], change[drawn], marker, label=label, **look)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_xlabel(predictor.name)
        title = f"Spearman {predictor.spearman:.2f}, AUC {predictor.auc:.3f}"
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("change of the mean loss\n(nats a token)")
    all_axes[0].legend(frameon=False, fontsize=8)
    return figure


def retention_figure(journal: Journal) -> "Figure | None":
    """Draws P(new) of each fact as more are written; None with fewer than two evaluations."""
    edits, evaluations, values = retention_table(journal)
    if len(evaluations) < 2:
        return None
    figure = new_figure(6.0, min(8.0, 1.6 + 0.08 * len(edits)))
    axes = figure.subplots()
    mesh = axes.pcolormesh(values, cmap="viridis", vmin=0, vmax=1)
    axes.invert_yaxis()
    columns, rows = (
        np.unique(np.linspace(0, n - 1, min(n, 12)).astype(int)) for n in values.shape[::-1]
    )
    axes.set_xticks(columns + 0.5, [str(evaluations[i]) for i in columns])
    axes.set_yticks(rows + 0.5, [str(edits[i]) for i in rows])
    axes.set_xlabel("edits made")
    axes.set_ylabel("fact of edit")
    axes.set_title("P(new) of each fact as more are written", fontsize=10)
    figure.colorbar(mesh, ax=axes)
    return figure
