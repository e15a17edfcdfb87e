"""The report of a study: report.md, the page report.html and the figures, all from the journal alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.edits.journal import Journal, read_journal
from jaxedit.study.foresight import COLLAPSE_PPL, foresight_lines
from jaxedit.study.foresight import draw as draw_foresight
from jaxedit.study.page import write_page
from jaxedit.study.reference import Curve, draw_curves, paper_lines
from jaxedit.study.retention import draw as draw_retention
from jaxedit.study.words import HEADER, drawable, edit_steps, is_single, name_of, number, phase_times, row, summary


def report(folder: Path, curves: Sequence[Curve] = ()) -> Path:
    """Writes report.md, report.html and the figures (.png and .pdf) beside a study's journal; returns the first.

    Args:
      folder: the study's.
      curves: to be drawn beside its own.

    Raises:
      ValueError: where the folder is not a study's, or holds no step yet.
    """
    journal = read_journal(folder)
    steps = edit_steps(journal)
    figure(journal, folder / "perplexity", curves)
    draw_foresight(steps, folder / "foresight", is_single(journal))
    has_map = draw_retention(journal, folder / "retention")
    shown = "## Retention\n\n![P(new) of each fact as more are written](retention.png)\n" if has_map else ""
    write_page(journal, folder / "report.html", curves)
    (folder / "report.md").write_text(markdown(journal, steps) + shown, encoding="utf-8")
    return folder / "report.md"


def markdown(journal: Journal, steps: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    escape = lambda text: text.replace("|", "\\|").replace("\r", "⏎").replace("\n", "⏎")  # noqa: E731
    rows = [row(record, is_single(journal)) for record in steps]
    table = ["| " + " | ".join(map(escape, cells)) + " |" for cells in [HEADER, *rows]]
    table.insert(1, "|---:|---|---:|---:|---|---|---:|---|")
    said = [
        f"| {record['step']} | {escape(name_of(record))} | {escape(record['says'])} |"
        for record in steps
        if "error" not in record
    ]
    failed = [f"- Edit {record['step']} was not possible: {escape(record['error'])}" for record in steps if "error" in record]
    times = ", ".join(f"{phase} {time_s:.1f} s" for phase, time_s in phase_times(steps).items())
    return "\n".join(
        ["# Study", "", *summary(journal, steps), "", "![perplexity after each edit](perplexity.png)", "", *table, ""]
        + ["## What the model says right after each edit", "", "| # | edit | continuation |", "|---:|---|---|", *said, ""]
        + failed
        + foresight_lines(steps, is_single(journal))
        + paper_lines(journal)
        + ["## Time", "", f"{times} in {len(steps)} edits.", "", "## Configuration", "", "```json"]
        + [(journal.folder / "run.json").read_text(encoding="utf-8").strip(), "```", ""]
    )


def figure(journal: Journal, path: Path, curves: Sequence[Curve] = ()) -> None:
    """Perplexity after each edit on a logarithmic axis, as path.png and path.pdf; readable in greyscale.

    A perplexity that is not finite is drawn at ten times the highest of the others.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    last = edit_steps(journal)[-1]["step"]
    steps = [record for record in edit_steps(journal) if "perplexity" in record]
    x = np.array([record["step"] for record in steps], int)
    unedited = float(journal.steps[0].record["perplexity"]["mean"])
    (base, *rest), top = drawable([unedited] + [float(record["perplexity"]["mean"]) for record in steps])
    shown = np.array(rest)
    kept = np.array([record["kept"] for record in steps], bool)
    flagged = np.array([bool(record["guard"]) for record in steps], bool)
    single = is_single(journal)

    figure_, axes = pyplot.subplots(figsize=(7.0, 3.6), layout="constrained")
    for level, text, style in ((COLLAPSE_PPL, "collapse: 1000", "--"), (base, f"unedited: {number(unedited)}", ":")):
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
                x[chosen], shown[chosen], marker, color=color, markersize=size, markeredgecolor=edge, label=label, zorder=3
            )
    beside = draw_curves(axes, curves, last)
    _name_worst(axes, steps, x, shown, flagged, last)
    axes.set_yscale("log")
    axes.set_ylim(bottom=min([base, *shown, *beside]) / 2, top=max([top / 3, 3 * base, *(3 * shown), *beside]))
    axes.set_xlim(-0.5, last + 0.8)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.set_xlabel("edit")
    axes.set_ylabel("perplexity (mean over texts)")
    method, model = journal.run["config"]["editor"]["method"], journal.run["config"]["model"]
    axes.set_title(f"{method.upper()} on {model}: perplexity after each edit", fontsize=10, parse_math=False, pad=20)
    if steps or curves:
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    for suffix in (".png", ".pdf"):
        figure_.savefig(path.with_suffix(suffix), dpi=200)
    pyplot.close(figure_)


def _name_worst(axes, steps: list[dict[str, Any]], x, shown, flagged, last: int, most: int = 6) -> None:
    """Names the most damaging edits beside their marks, leaving out names that would lie on each other."""
    height = np.log10(shown.max() / shown.min()) + 1 if len(shown) else 1
    named: list[tuple[float, float]] = []
    for i in np.flatnonzero(flagged)[np.argsort(-shown[flagged])]:
        at = x[i] / max(last, 1), np.log10(shown[i]) / height
        if len(named) == most or any(abs(at[0] - a) < 0.35 and abs(at[1] - b) < 0.07 for a, b in named):
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
