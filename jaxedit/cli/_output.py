"""What commands print: tables, JSON, a progress bar, a study's report."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxedit.reports.curves import Curve
import json

from jaxedit.distributed import is_first_process


def print_json(value: Any) -> None:
    """One JSON object on standard output; numbers that are not finite as strings."""
    from jaxedit.files import to_json

    print(json.dumps(to_json(value), ensure_ascii=False))


def show_table(header: list[str], rows: list[list[str]]) -> None:
    """A table for people: names on the left, numbers on the right."""
    from rich.console import Console
    from rich.table import Table

    # Facts may hold brackets. A file or a pipe has no width of its own.
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in header:
        table.add_column(title, justify="left" if title in ("method", "edit") else "right")
    for cells in rows:
        table.add_row(*cells)
    console.print(table)


class StepBar:
    """A progress bar on standard error: the current perplexity and the expected time left."""

    def __init__(self, single: bool):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.single = single
        self.console = Console(
            stderr=True, markup=False, emoji=False, quiet=not is_first_process()
        )  # facts may hold brackets
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task("loading the model", total=None)

    def __enter__(self) -> "StepBar":
        if self.console.is_interactive:  # a log needs no bar before there is a step
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.update(
            self.task, visible=self.bar.tasks[0].total is not None
        )  # nothing was begun: nothing to show
        if self.bar.live.is_started:
            self.bar.stop()

    def step(self, record: dict[str, Any], total: int) -> None:
        """Shows one step."""
        from jaxedit.reports.formatting import format_number
        from jaxedit.reports.records import name_of, outcome

        self.bar.start()
        if "error" in record:
            self.bar.print(f"{record['step']:4d}  {name_of(record)}: {record['error']}")
        elif record["step"] == 0:
            self.bar.print(
                f"unedited model: perplexity {format_number(record['perplexity']['mean'])}"
            )
        else:
            style = "bold red" if record["guard"] else None
            ppl = (
                format_number(record["perplexity"]["mean"])
                if "perplexity" in record
                else "not measured"
            )
            guard = f" ({record['guard']})" if record["guard"] else ""
            self.bar.print(
                f"{record['step']:4d}  {name_of(record)}: perplexity {ppl}, {outcome(record, self.single)}{guard}",
                style=style,
            )
        ppl = format_number(record["perplexity"]["mean"]) if "perplexity" in record else "–"
        self.bar.update(
            self.task, completed=record["step"], total=total, description=f"perplexity {ppl}"
        )


def show_report(folder: Path, as_json: bool, curves: Sequence["Curve"] = ()) -> None:
    """Writes a study's report, with curves beside its own, and prints the table, or the journal as
    one JSON object.
    """
    from jaxedit.reports.markdown import write_report
    from jaxedit.reports.records import HEADER, NUMBERS, edit_steps, is_single, summary, table_row
    from jaxedit.study.journal import read_journal

    path = write_report(folder, curves)
    journal = read_journal(folder)
    steps = edit_steps(journal)
    if as_json:
        baseline: dict[str, Any] = journal.steps[0].record
        print_json(
            {
                "workdir": str(folder),
                "baseline": baseline,
                "steps": steps,
                "summary": summary(journal, steps),
            }
        )
        return
    from rich.console import Console
    from rich.table import Table

    # Facts may hold brackets. A file or a pipe has no width of its own.
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in HEADER:
        table.add_column(title, justify="right" if title in NUMBERS else "left")
    for record in steps:
        table.add_row(
            *table_row(record, is_single(journal)), style="red" if record.get("guard") else None
        )
    console.print(table)
    console.print()
    for line in summary(journal, steps):
        console.print(line, highlight=False)
    console.print(
        f"\nReport: {path}   Page: {folder / 'report.html'}   Figure: {folder / 'perplexity.png'}",
        highlight=False,
    )
