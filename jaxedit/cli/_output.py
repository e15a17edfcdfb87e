"""What commands print: tables, JSON, a progress bar, a study's report."""

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from jaxedit.distributed import is_first_process
from jaxedit.files import to_json
from jaxedit.messages import escape_controls

if TYPE_CHECKING:
    from rich.console import Console

    from jaxedit.reports.curves import Curve
    from jaxedit.study.record import StepRecord

PIPE_COLUMNS = 160  # a file or a pipe has no width of its own


def open_missing_streams() -> None:
    """Give a process whose standard output or standard error is closed one that drops all."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def drop_output() -> None:
    """Drop what standard output could not take: Python writes it again as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def use_any_encoding(*streams: TextIO) -> None:
    """Let streams write escapes for letters that their encoding lacks, as a Windows pipe's does."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Print one JSON object; numbers that are not finite as strings.

    Control characters are escaped, and in an output that is not UTF-8 all that is not ASCII.
    """
    is_utf = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    print(escape_controls(json.dumps(to_json(value), ensure_ascii=not is_utf)))


def results_console(stderr: bool = False, quiet: bool = False) -> "Console":
    """Make a console for results; text is printed as it is, without control characters.

    Args:
      stderr: print to standard error.
      quiet: print nothing.
    """
    from rich.console import Console

    # Facts may hold brackets, which are no markup, and escape sequences, which are not obeyed.
    class PlainConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            texts = [escape_controls(each) if isinstance(each, str) else each for each in objects]
            super().print(*texts, **options)

    width = None if stderr or sys.stdout.isatty() else PIPE_COLUMNS
    return PlainConsole(
        markup=False, emoji=False, highlight=False, width=width, stderr=stderr, quiet=quiet
    )


def show_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[str] = ("method", "edit"),
    styles: Sequence[str | None] | None = None,
    title: str | None = None,
) -> None:
    """Print a table for people.

    Args:
      header: titles of the columns.
      rows: cells.
      left: titles of the columns that are aligned left; the others hold numbers.
      styles: of each row.
      title: above the table.
    """
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row, style in zip(rows, styles or [None] * len(rows), strict=True):
        table.add_row(*map(escape_controls, row), style=style)
    results_console().print(table)


class StepBar:
    """A progress bar on standard error: the current perplexity and the expected time left."""

    def __init__(self, single: bool):
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.single = single
        self.console = results_console(stderr=True, quiet=not is_first_process())
        text = TextColumn("{task.description}")
        columns = text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task("loading the model", total=None)

    def __enter__(self) -> "StepBar":
        if self.console.is_interactive:  # a log needs no bar before there is a step
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        has_begun = self.bar.tasks[0].total is not None
        self.bar.update(self.task, visible=has_begun)
        if self.bar.live.is_started:
            self.bar.stop()

    def show_step(self, record: "StepRecord", total: int) -> None:
        """Show one step."""
        from jaxedit.reports.formatting import format_perplexity
        from jaxedit.reports.records import outcome, why_not_made

        self.bar.start()
        measured = format_perplexity(record.perplexity) if record.perplexity else None
        if record.kind == "baseline":
            self.bar.print(f"unedited model: perplexity {measured}")
        elif not record.is_made:
            self.bar.print(f"{record.step:4d}  {record.request_summary}: {why_not_made(record)}")
        else:
            reason = f" ({record.guard_reason})" if record.guard_reason else ""
            self.bar.print(
                f"{record.step:4d}  {record.request_summary}: perplexity "
                f"{measured or 'not measured'}, {outcome(record, self.single)}{reason}",
                style="bold red" if record.guard_code else None,
            )
        description = f"perplexity {measured or '–'}"
        self.bar.update(self.task, completed=record.step, total=total, description=description)


def show_report(folder: Path, as_json: bool, curves: Sequence["Curve"] = ()) -> None:
    """Write a study's report and print its table, or its journal as one JSON object.

    Args:
      folder: the study's.
      as_json: print the journal.
      curves: to be drawn beside the study's own.
    """
    from jaxedit.reports.markdown import write_report

    path = write_report(folder, curves)
    show_study(folder, as_json)
    if not as_json:
        page, figure = folder / "report.html", folder / "perplexity.png"
        results_console().print(f"\nReport: {path}   Page: {page}   Figure: {figure}")


def show_study(folder: Path, as_json: bool) -> None:
    """Print a study's edits as a table and its summary, or its journal as one JSON object.

    Args:
      folder: the study's; nothing is written there.
      as_json: print the journal.
    """
    from jaxedit.reports.records import HEADER, NUMBERS, edit_steps, is_single, summary, table_row
    from jaxedit.study.journal import read_journal

    journal = read_journal(folder)
    steps = edit_steps(journal)
    if as_json:
        print_json(
            {
                "workdir": str(folder),
                "baseline": journal.steps[0].record.to_dict(),
                "steps": [record.to_dict() for record in steps],
                "summary": summary(journal, steps),
            }
        )
        return

    # For people: a row an edit, and the summary.
    show_table(
        HEADER,
        [table_row(record, is_single(journal)) for record in steps],
        left=[name for name in HEADER if name not in NUMBERS],
        styles=["red" if record.guard_code else None for record in steps],
    )
    console = results_console()
    console.print()
    for line in summary(journal, steps):
        console.print(line)
