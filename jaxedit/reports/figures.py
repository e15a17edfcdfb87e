"""The figures of one study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL, DAMAGE_RATIO, damage_predictors
from jaxedit.reports.curves import Curve, draw_curves
from jaxedit.reports.formatting import clip_for_plot, format_number
from jaxedit.reports.records import edit_steps, is_single, retention_table
from jaxedit.study.journal import Journal


def draw_retention(journal: Journal, path: Path) -> bool:
    """The heat map of P(new) as path.png and path.pdf; whether there was one to draw."""
    numbers, times, value_NT = retention_table(journal)
    if len(times) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(
        figsize=(6.0, min(8.0, 1.6 + 0.08 * len(numbers))), layout="constrained"
    )
    mesh = axis.pcolormesh(value_NT, cmap="viridis", vmin=0, vmax=1)
    axis.invert_yaxis()
    columns, rows = (
        np.unique(np.linspace(0, n - 1, min(n, 12)).astype(int)) for n in (len(times), len(numbers))
    )
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


def draw_perplexity(journal: Journal, path: Path, curves: Sequence[Curve] = ()) -> None:
    """Perplexity after each edit on a logarithmic axis, as path.png and path.pdf; readable in
    greyscale.

    A perplexity that is not finite is drawn at ten times the highest of the others.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    last = edit_steps(journal)[-1]["step"]
    steps = [record for record in edit_steps(journal) if "perplexity" in record]
    x = np.array([record["step"] for record in steps], int)
    unedited = float(journal.steps[0].record["perplexity"]["mean"])
    (base, *rest), top = clip_for_plot(
        [unedited] + [float(record["perplexity"]["mean"]) for record in steps]
    )
    shown = np.array(rest)
    kept = np.array([record["kept"] for record in steps], bool)
    flagged = np.array([bool(record["guard"]) for record in steps], bool)
    single = is_single(journal)

    figure_, axes = pyplot.subplots(figsize=(7.0, 3.6), layout="constrained")
    for level, text, style in (
        (COLLAPSE_PPL, "collapse: 1000", "--"),
        (base, f"unedited: {format_number(unedited)}", ":"),
    ):
        axes.axhline(level, color="0.4", linestyle=style, linewidth=1, zorder=1)
        axes.annotate(
            text, (1, level), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points", fontsize=8,
            color="0.3", va="center", annotation_clip=False,
        )  # fmt: skip
    if kept.any():
        axes.plot(np.r_[0, x[kept]], np.r_[base, shown[kept]], color="0.45", linewidth=1, zorder=2)
    quiet = "each edit on the untouched model" if single else "kept"
    back = "damaging" if single else "damaging, rolled back"
    for chosen, label, marker, color, size in (
        (~flagged, quiet, "o", "#1b6ca8", 4.5),
        (flagged & ~kept, back, "X", "#b3261e", 9),
        (flagged & kept, "damaging, kept", "s", "#b3261e", 5),
    ):
        if chosen.any():
            edge = "white" if marker == "X" else color
            axes.plot(
                x[chosen],
                shown[chosen],
                marker,
                color=color,
                markersize=size,
                markeredgecolor=edge,
                label=label,
                zorder=3,
            )
    beside = draw_curves(axes, curves, last)
    _name_worst(axes, steps, x, shown, flagged, last)
    axes.set_yscale("log")
    axes.set_ylim(
        bottom=min([base, *shown, *beside]) / 2, top=max([top / 3, 3 * base, *(3 * shown), *beside])
    )
    axes.set_xlim(-0.5, last + 0.8)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.set_xlabel("edit")
    axes.set_ylabel("perplexity (mean over texts)")
    method, model = journal.run["config"]["editor"]["method"], journal.run["config"]["model"]
    axes.set_title(
        f"{method.upper()} on {model}: perplexity after each edit",
        fontsize=10,
        parse_math=False,
        pad=20,
    )
    if steps or curves:
        axes.legend(
            frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3
        )
    axes.spines[["top", "right"]].set_visible(False)
    for suffix in (".png", ".pdf"):
        figure_.savefig(path.with_suffix(suffix), dpi=200)
    pyplot.close(figure_)


def _name_worst(
    axes, steps: list[dict[str, Any]], x, shown, flagged, last: int, most: int = 6
) -> None:
    """Names the most damaging edits beside their marks, leaving out names that would lie on each
    other.
    """
    height = np.log10(shown.max() / shown.min()) + 1 if len(shown) else 1
    named: list[tuple[float, float]] = []
    for i in np.flatnonzero(flagged)[np.argsort(-shown[flagged])]:
        at = x[i] / max(last, 1), np.log10(shown[i]) / height
        if len(named) == most or any(
            abs(at[0] - a) < 0.35 and abs(at[1] - b) < 0.07 for a, b in named
        ):
            continue
        named.append(at)
        right = x[i] < 0.75 * last
        axes.annotate(
            f"{steps[i]['subject']} → {steps[i]['target_new']}",
            (x[i], shown[i]),
            textcoords="offset points",
            xytext=(7, 0) if right else (-7, 0),
            ha="left" if right else "right",
            va="center",
            fontsize=8,
            parse_math=False,
        )


def draw_damage_prediction(steps: list[dict[str, Any]], path: Path, single: bool = True) -> None:
    """The change of the loss against each predictor, as path.png and path.pdf; nothing where there
    is no predictor.
    """
    found = damage_predictors(steps, single)
    if not found:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [record for record in steps if "perplexity" in record]
    damaging = np.array(
        [float(record["perplexity"]["ratio"]) > DAMAGE_RATIO for record in measured]
    )
    figure, axes = pyplot.subplots(
        1,
        len(found),
        figsize=(3.2 * len(found), 3.0),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, each in zip(axes[0], found, strict=True):
        finite = np.isfinite(each.value) & np.isfinite(each.change_nats) & (each.value > 0)
        for chosen, label, marker, color in (
            (~damaging, "harmless", "o", "#1b6ca8"),
            (damaging, "damaging", "X", "#b3261e"),
        ):
            axis.plot(
                each.value[chosen & finite], each.change_nats[chosen & finite], marker, color=color, markersize=5,
                markeredgecolor="white", markeredgewidth=0.5, label=label,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set_xlabel(each.name)
        axis.set_title(f"Spearman {each.spearman:.2f}, AUC {each.auc:.3f}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("change of the mean loss\n(nats a token)")
    axes[0][0].legend(frameon=False, fontsize=8)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=200)
    pyplot.close(figure)
