"""Show a study's report again: a table, report.md, the page report.html and the figures, made from its journal.

jaxedit report --workdir=runs/laptop
jaxedit report --workdir=runs/gpt2-xl --reference="curves.json:ROME, hard"     with the curve of that name beside its own
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxedit.cli import FLAGS, json_flag, print_json, reference_flag

if TYPE_CHECKING:
    from jaxedit.study.reference import Curve


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", "runs/laptop", "the study's work directory")
    reference_flag()
    json_flag()


def main() -> None:
    """Writes the report and shows it."""
    from jaxedit.study.reference import read_curves

    show(Path(FLAGS.workdir), FLAGS.json, read_curves(FLAGS.reference))


def show(folder: Path, as_json: bool, curves: Sequence["Curve"] = ()) -> None:
    """Writes a study's report, with curves beside its own, and prints the table, or the journal as one JSON object."""
    from jaxedit.edits.journal import read_journal
    from jaxedit.study.report import report
    from jaxedit.study.words import HEADER, NUMBERS, edit_steps, is_single, row, summary

    path = report(folder, curves)
    journal = read_journal(folder)
    steps = edit_steps(journal)
    if as_json:
        baseline: dict[str, Any] = journal.steps[0].record
        print_json({"workdir": str(folder), "baseline": baseline, "steps": steps, "summary": summary(journal, steps)})
        return
    from rich.console import Console
    from rich.table import Table

    # Facts may hold brackets. A file or a pipe has no width of its own.
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in HEADER:
        table.add_column(title, justify="right" if title in NUMBERS else "left")
    for record in steps:
        table.add_row(*row(record, is_single(journal)), style="red" if record.get("guard") else None)
    console.print(table)
    console.print()
    for line in summary(journal, steps):
        console.print(line, highlight=False)
    console.print(f"\nReport: {path}   Page: {folder / 'report.html'}   Figure: {folder / 'perplexity.png'}", highlight=False)
