"""The figures that put several models or studies beside each other."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL
from jaxedit.analyses.surrogate import FORMS, correlations
from jaxedit.reports.curves import Curve, draw_curves
from jaxedit.reports.outcomes import Outcome


def draw_surrogate(rows: list[dict[str, Any]], path: Path, metric: str = "acc") -> None:
    """Scatters of perplexity, each form in a row, against each task's accuracy, as path.png and
    path.pdf.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    found = correlations(rows, metric)
    size = (len(FORMS), len(found) // len(FORMS))
    figure, axes = pyplot.subplots(
        *size, figsize=(3.6 * size[1], 2.8 * size[0]), layout="constrained", squeeze=False
    )
    for axis, each in zip(axes.flat, found, strict=True):
        for row in rows:
            numbers = row["tasks"][each.task]
            marker, color = ("*", "#b3261e") if row["level"] is None else ("o", "#1b6ca8")
            axis.errorbar(
                row[each.form], numbers[metric], numbers.get(f"{metric}_stderr"), fmt=marker, color=color, markersize=8 if
                marker == "*" else 4.5, elinewidth=0.8, label="unedited" if row["level"] is None else None,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_xlabel(
            "perplexity (mean over texts)" if each.form == "perplexity" else "perplexity (pooled)"
        )
        axis.set_ylabel(f"{each.task}: {metric}")
        axis.set_title(f"ρ = {each.rho:.2f} ({each.low:.2f} to {each.high:.2f})", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=200)
    pyplot.close(figure)


def draw_comparison(outcomes: list[Outcome], path: Path, curves: Sequence[Curve] = ()) -> None:
    """The comparison as path.png and path.pdf, readable in greyscale: curves over edits, or what
    one edit each has to weigh.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure_, axes = pyplot.subplots(figsize=(7.0, 4.0), layout="constrained")
    if all(len(outcome.made) == 1 for outcome in outcomes):
        _trade_off(outcomes, axes)
    else:
        _curves(outcomes, axes, curves)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    for suffix in (".png", ".pdf"):
        figure_.savefig(path.with_suffix(suffix), dpi=200)
    pyplot.close(figure_)


def _trade_off(outcomes: list[Outcome], axes) -> None:
    """The share of facts that hold against the perplexity ratio, a line for each part of the names
    before an "@".
    """
    from matplotlib import pyplot

    groups: dict[str, list[tuple[float, float, str]]] = {}
    for outcome in outcomes:
        (record,) = outcome.made
        group, _, value = outcome.name.partition("@")
        efficacy = record["fact"]["efficacy"]  # None where the facts have no true answers
        place = (
            float(record["perplexity"]["ratio"]),
            np.nan if efficacy is None else 100 * float(efficacy),
            value,
        )
        groups.setdefault(group, []).append(place)
    for i, (group, places) in enumerate(groups.items()):
        ratio, efficacy, values = zip(*places, strict=True)
        color = pyplot.get_cmap("viridis")(0.9 * i / max(1, len(groups) - 1))
        axes.plot(
            ratio, efficacy, "-", marker="osD^vPX*"[i % 8], markersize=5, color=color, label=group
        )
        for j, place in enumerate(
            zip(ratio, efficacy, values, strict=True)
        ):  # turn about: neighbours lie close
            axes.annotate(
                place[2],
                place[:2],
                xytext=(4, (5, -9)[j % 2]),
                textcoords="offset points",
                fontsize=6,
                color=color,
            )
    axes.set_xlabel("perplexity of the edited model / of the unedited one")
    axes.set_ylabel("efficacy (%)")


def _curves(outcomes: list[Outcome], axes, beside: Sequence[Curve]) -> None:
    """Perplexity against edits on a logarithmic axis, a line a method."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    styles = [(marker, line) for line in ("-", "--", ":") for marker in "osD^vPX*"]
    for i, outcome in enumerate(outcomes):
        points = [(0, outcome.unedited)]
        points += [
            (r["step"], float(r["perplexity"]["mean"])) for r in outcome.made if "perplexity" in r
        ]
        x, y = np.array(points).T
        marker, line = styles[i % len(styles)]
        color = pyplot.get_cmap("viridis")(0.9 * i / max(1, len(outcomes) - 1))
        axes.plot(
            x,
            np.where(np.isfinite(y), y, np.nan),
            line,
            marker=marker,
            markersize=4,
            color=color,
            label=outcome.name,
        )
    draw_curves(axes, beside, max(outcome.made[-1]["step"] for outcome in outcomes if outcome.made))
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    if highest > COLLAPSE_PPL / 2:
        _collapse_line(axes)
    if highest < 10 * lowest:  # powers of ten alone would leave the axis without a number
        axes.yaxis.set_major_locator(pyplot.MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("edits")
    axes.set_ylabel("perplexity (mean over texts)")
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))


def _collapse_line(axes) -> None:
    axes.axhline(COLLAPSE_PPL, color="0.4", linestyle="--", linewidth=1, zorder=1)
    axes.annotate(
        "collapse: 1000", (1, COLLAPSE_PPL), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        fontsize=8, color="0.3", ha="right", va="bottom",
    )  # fmt: skip


def draw_scaling(found: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """The two curves as one figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(7.0, 3.0), layout="constrained")
    axes[0].set_xscale("log")
    for axis, (name, title) in zip(
        axes, (("edits", "edits made before"), ("tokens", "tokens")), strict=True
    ):
        count, time_s = zip(*found[name], strict=True)
        axis.plot(count, time_s, "o-", color="0.2", markersize=4)
        axis.set_xlabel(title)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_ylim(0, 1.1 * max(time_s))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds an edit")
    axes[1].set_ylabel("seconds a perplexity")
    axes[1].set_xlim(left=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)
