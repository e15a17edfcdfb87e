"""The report of a study: report.md, the page report.html and the figures, all from the journal
alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL, DAMAGE_RATIO, damage_predictors
from jaxedit.analyses.paper import PAPER_TITLE, paper_numbers
from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import draw_damage_prediction as draw_foresight
from jaxedit.reports.figures import draw_perplexity, draw_retention
from jaxedit.reports.html import write_page
from jaxedit.reports.records import (
    HEADER,
    edit_steps,
    is_single,
    name_of,
    phase_times,
    summary,
    table_row,
)
from jaxedit.study.journal import Journal, read_journal


def write_report(folder: Path, curves: Sequence[Curve] = ()) -> Path:
    """Writes report.md, report.html and the figures (.png and .pdf) beside a study's journal;
    returns the first.

    Args:
      folder: the study's.
      curves: to be drawn beside its own.

    Raises:
      ValueError: where the folder is not a study's, or holds no step yet.
    """
    journal = read_journal(folder)
    steps = edit_steps(journal)
    draw_perplexity(journal, folder / "perplexity", curves)
    draw_foresight(steps, folder / "foresight", is_single(journal))
    has_map = draw_retention(journal, folder / "retention")
    shown = (
        "## Retention\n\n![P(new) of each fact as more are written](retention.png)\n"
        if has_map
        else ""
    )
    write_page(journal, folder / "report.html", curves)
    (folder / "report.md").write_text(report_markdown(journal, steps) + shown, encoding="utf-8")
    return folder / "report.md"


def report_markdown(journal: Journal, steps: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    rows = [table_row(record, is_single(journal)) for record in steps]
    table = ["| " + " | ".join(map(_escape, cells)) + " |" for cells in [HEADER, *rows]]
    table.insert(1, "|---:|---|---:|---:|---|---|---:|---|")
    said = [
        f"| {record['step']} | {_escape(name_of(record))} | {_escape(record['says'])} |"
        for record in steps
        if "error" not in record
    ]
    failed = [
        f"- Edit {record['step']} was not possible: {_escape(record['error'])}"
        for record in steps
        if "error" in record
    ]
    times = ", ".join(f"{phase} {time_s:.1f} s" for phase, time_s in phase_times(steps).items())
    return "\n".join(
        [
            "# Study",
            "",
            *summary(journal, steps),
            "",
            "![perplexity after each edit](perplexity.png)",
            "",
            *table,
            "",
        ]
        + [
            "## What the model says right after each edit",
            "",
            "| # | edit | continuation |",
            "|---:|---|---|",
            *said,
            "",
        ]
        + failed
        + damage_prediction_lines(steps, is_single(journal))
        + paper_lines(journal)
        + ["## Time", "", f"{times} in {len(steps)} edits.", "", "## Configuration", "", "```json"]
        + [(journal.folder / "run.json").read_text(encoding="utf-8").strip(), "```", ""]
    )


def _escape(text: str) -> str:
    """Text for a cell of a Markdown table, on one line."""
    return text.replace("|", "\\|").replace("\r", "⏎").replace("\n", "⏎")


def damage_prediction_lines(steps: list[dict[str, Any]], single: bool = True) -> list[str]:
    """The predictors as a Markdown table; nothing where there is none."""
    found = damage_predictors(steps, single)
    if not found:
        return []
    measured = [record for record in steps if "perplexity" in record]
    n_damaging = sum(float(record["perplexity"]["ratio"]) > DAMAGE_RATIO for record in measured)
    n_collapsed = sum(float(record["perplexity"]["mean"]) > COLLAPSE_PPL for record in measured)
    header = [
        "predictor",
        "Spearman",
        "of the damaging",
        "AUC",
        "holds all damaging",
        "collapsing in the worst 1 %",
    ]
    rows = [
        [
            each.name,
            f"{each.spearman:.3f}",
            f"{each.spearman_damaging:.3f}",
            f"{each.auc:.3f}",
            f"worst {100 * each.worst_share:.1f} %" if n_damaging else "–",
            f"{each.collapsing_in_top} of {n_collapsed}",
        ]
        for each in found
    ]
    table = ["| " + " | ".join(cells) + " |" for cells in [header, *rows]]
    table.insert(1, "|---|" + "---:|" * (len(header) - 1))
    about = (
        f"{len(measured)} edits were measured, {n_damaging} of them damaging (over {DAMAGE_RATIO:g} times the unedited "
        f"perplexity), {n_collapsed} collapsing. Rank correlations are with the change of the mean loss."
    )
    return [
        "## How well the damage was foreseen",
        "",
        about,
        "",
        *table,
        "",
        "![foresight](foresight.png)",
        "",
    ]


def paper_lines(journal: Journal) -> list[str]:
    """The paper's numbers for a study's model and method, as Markdown; none for another model."""
    found = paper_numbers(journal)
    if found is None:
        return []
    lines = [f"## {PAPER_TITLE}", "", *found.sentences]
    if found.rows:
        lines += ["", f"| {' | '.join(found.header)} |", "|---|---:|---:|---:|"]
        lines += [f"| {' | '.join(row)} |" for row in found.rows]
    return [*lines, ""]
