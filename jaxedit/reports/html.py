"""The report as a page: one HTML file without network, light or dark as the reader's system is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxedit.analyses.paper import PAPER_TITLE, paper_numbers
from jaxedit.files import write_atomic
from jaxedit.reports.curves import Curve
from jaxedit.reports.plots import (
    damage_prediction_plot,
    perplexity_plot,
    retention_plot,
    time_plot,
)
from jaxedit.reports.prediction import PREDICTION_TITLE, prediction_numbers
from jaxedit.reports.records import (
    HEADER,
    NUMBERS,
    edit_steps,
    is_single,
    outcome,
    remark,
    summary,
    table_row,
)
from jaxedit.study.entry_names import editor_entry, name_methods
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord

TEMPLATE = "report.html.j2"
PLOT_OPTIONS = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}


def write_page(journal: Journal, path: Path, curves: Sequence[Curve] = ()) -> None:
    """Write a study's page: figures, table of edits, chosen prompts, configuration.

    Args:
      journal: of a study with at least one edit.
      path: of the .html file.
      curves: to be drawn beside the study's own.

    Raises:
      ValueError: where the journal holds no edit.
    """
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    # The figures; the library that draws them is written into the page once.
    steps, config, single = edit_steps(journal), journal.run["config"], is_single(journal)
    plots = {
        "Perplexity after each edit": perplexity_plot(journal, steps, curves),
        PREDICTION_TITLE: damage_prediction_plot(steps, single),
        "Retention: P(new) of each fact as more are written": retention_plot(journal, steps),
        "Seconds of each phase": time_plot(steps),
    }
    options: Any = dict(full_html=False, include_plotlyjs=False, config=PLOT_OPTIONS)
    figures = {title: plot.to_html(**options) for title, plot in plots.items() if plot}

    loader = PackageLoader("jaxedit.reports", ".")
    page = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = page.get_template(TEMPLATE).render(
        title=f"{name_methods(editor_entry(config))} on {config['model']}",
        summary=summary(journal, steps),
        figures=figures,
        header=[(name, name in NUMBERS) for name in HEADER],
        rows=[table_cells(record, single) for record in steps],
        outcomes=sorted({outcome(record, single) for record in steps}),
        said=prompt_continuations(journal, steps),
        prediction=prediction_numbers(steps, single),
        prediction_title=PREDICTION_TITLE,
        paper=paper_numbers(journal),
        paper_title=PAPER_TITLE,
        run=json.dumps(journal.run, indent=2, ensure_ascii=False),
        plotlyjs=get_plotlyjs(),
    )
    write_atomic(path, text.encode())


def table_cells(record: StepRecord, single: bool) -> dict[str, Any]:
    """Return an edit as the page's table has it: cells with what they are sorted by, and texts."""
    perplexity, metrics = record.perplexity or {}, record.metrics or {}
    sorted_by = {
        "#": record.step,
        "P(new)": metrics.get("probability_new"),
        "accuracy": metrics.get("efficacy_accuracy"),
        "|u·k|": (record.optimisation or {}).get("denominator"),
        "perplexity": perplexity.get("mean"),
        "ratio": perplexity.get("ratio"),
    }
    cells = []
    for name, text in zip(HEADER, table_row(record, single), strict=True):
        value = sorted_by.get(name)
        cells.append((text, None if value is None else float(value)))
    return {
        "cells": cells,
        "outcome": outcome(record, single),
        "damaging": record.guard_code is not None,
        "before": record.unedited_continuation,
        "after": record.continuation,
        "reason": remark(record),
    }


def prompt_continuations(journal: Journal, steps: list[StepRecord]) -> list[dict[str, Any]]:
    """List the study's prompts, each with what the model says to it after which edits."""
    records = [journal.steps[0].record, *steps]
    said = [(record.step, record.prompt_continuations) for record in records]
    known = [(step, texts) for step, texts in said if texts is not None]
    prompts = journal.run["config"]["eval"]["prompts"]
    return [
        {"prompt": prompt, "said": [(step, texts[i]) for step, texts in known]}
        for i, prompt in enumerate(prompts)
    ]
