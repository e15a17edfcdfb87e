"""The report of a study: report.md, report.html and the figures, from the journal alone."""

import json
from collections.abc import Sequence
from pathlib import Path

from jaxedit.analyses.paper import PAPER_TITLE, paper_numbers
from jaxedit.files import write_atomic
from jaxedit.messages import escape_controls, escape_markdown
from jaxedit.metrics.generated import KINDS, WAYS
from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import (
    damage_prediction_figure,
    perplexity_figure,
    retention_figure,
    save_figure,
)
from jaxedit.reports.formatting import escape_cell, markdown_table
from jaxedit.reports.html import write_page
from jaxedit.reports.prediction import PREDICTION_TITLE, prediction_numbers
from jaxedit.reports.records import (
    HEADER,
    NUMBERS,
    edit_steps,
    is_single,
    phase_times,
    summary,
    table_row,
    why_not_made,
)
from jaxedit.study.journal import Journal, read_journal
from jaxedit.study.record import StepRecord


def write_report(folder: Path, curves: Sequence[Curve] = ()) -> Path:
    """Write report.md, report.html and the figures beside a study's journal; return the first.

    Args:
      folder: the study's.
      curves: to be drawn beside its own.

    Raises:
      ValueError: where the folder is not a study's, or holds no step yet.
    """
    journal = read_journal(folder)
    steps = edit_steps(journal)

    # The figures, those of which the journal has the numbers.
    figures = {
        "perplexity": perplexity_figure(journal, curves),
        "damage_prediction": damage_prediction_figure(steps, is_single(journal)),
        "retention": retention_figure(journal),
    }
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, folder / name)

    # The page, and the text that shows the figures.
    write_page(journal, folder / "report.html", curves)
    text = report_markdown(journal, steps)
    if figures["retention"] is not None:
        image = "![P(new) of each fact as more are written](retention.png)"
        text += f"## Retention\n\n{image}\n"
    write_atomic(folder / "report.md", text)
    return folder / "report.md"


def report_markdown(journal: Journal, steps: list[StepRecord]) -> str:
    """Write the report as Markdown."""
    # The tables of edits and continuations; a batch is shown by its first request.
    single = is_single(journal)
    rows = [table_row(record, single) for record in steps]
    said = [
        [str(record.step), record.request_summary, record.continuation]
        for record in steps
        if record.continuation is not None
    ]

    # The document, section by section.
    times = ", ".join(f"{phase} {time_s:.1f} s" for phase, time_s in phase_times(steps).items())
    return "\n".join(
        [
            "# Study",
            "",
            *map(escape_markdown, summary(journal, steps)),
            "",
            "![perplexity after each edit](perplexity.png)",
            "",
            *markdown_table(HEADER, rows, [name in NUMBERS for name in HEADER]),
            "",
            *not_made_lines(steps),
            "## What the model says right after each edit",
            "",
            *markdown_table(["#", "edit", "continuation"], said, [True, False, False]),
            "",
            *generated_lines(steps),
            *damage_prediction_lines(steps, single),
            *paper_lines(journal),
            "## Time",
            "",
            f"{times} in {len(steps)} edits.",
            "",
            "## Configuration",
            "",
            "```json",
            escape_controls(json.dumps(journal.run, indent=2, ensure_ascii=False)),
            "```",
            "",
        ]
    )


def not_made_lines(steps: list[StepRecord]) -> list[str]:
    """List the edits that were not made, errors apart from what the screening skipped."""
    lines = []
    for record in steps:
        if record.error is not None:
            lines.append(f"- Edit {record.step} was not possible: {escape_cell(record.error)}")
        elif record.skipped is not None:
            why = escape_cell(why_not_made(record) or "")
            lines.append(f"- Edit {record.step} was {why}")
    return [*lines, ""] if lines else []


def generated_lines(steps: list[StepRecord]) -> list[str]:
    """Write the shares of generated answers that are right; nothing where none were generated."""
    found = [record.generated_metrics for record in steps if record.generated_metrics]
    if not found:
        return []
    rows = []
    for kind in KINDS:
        shares: list[float | None] = []
        for way in WAYS:
            known = [each[name] for each in found if (name := f"generated_{kind}_{way}") in each]
            shares.append(sum(known) / len(known) if known else None)
        if any(share is not None for share in shares):
            rows.append([kind, *("–" if share is None else f"{share:.0%}" for share in shares)])
    table = markdown_table(["answers as generated", *WAYS], rows, [False, True, True, True])
    return ["## What the model says by itself", "", *table, ""]


def damage_prediction_lines(steps: list[StepRecord], single: bool = True) -> list[str]:
    """Write how well the damage was predicted; nothing where there is no predictor."""
    found = prediction_numbers(steps, single)
    if found is None:
        return []
    lines = [" ".join(found.sentences), "", *markdown_table(found.header, found.rows), ""]
    if found.calibration:
        lines += [" ".join(found.calibration), ""]
    image = "![change of the loss against each predictor](damage_prediction.png)"
    return [f"## {PREDICTION_TITLE}", "", *lines, image, ""]


def paper_lines(journal: Journal) -> list[str]:
    """Write the paper's numbers for a study's model and method; none for another model."""
    found = paper_numbers(journal)
    if found is None:
        return []
    lines = [f"## {PAPER_TITLE}", "", *found.sentences]
    if found.rows:
        lines += ["", *markdown_table(found.header, found.rows)]
    return [*lines, ""]
