"""The report as a page: one HTML file without network, light or dark as the reader's system is."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.damage_prediction import (
    COLLAPSE_PPL,
    damage_predictors,
    measured_damage,
)
from jaxedit.analyses.paper import PAPER_TITLE, paper_numbers
from jaxedit.files import write_atomic
from jaxedit.reports.curves import Curve
from jaxedit.reports.formatting import clip_for_plot, format_number
from jaxedit.reports.records import (
    HEADER,
    NUMBERS,
    edit_steps,
    is_single,
    measured_steps,
    outcome,
    phase_times,
    retention_table,
    summary,
    table_row,
    unedited_perplexity,
)
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TEMPLATE = "report.html.j2"
# What became of an edit -> colour (both readable on white and on black) and mark.
MARKS = {
    "kept": ("#2f81c7", "circle"),
    "measured": ("#2f81c7", "circle"),
    "kept, damaging": ("#d6453d", "square"),
    "damaging": ("#d6453d", "x"),
    "rolled back": ("#d6453d", "x"),
}


GREY = "#8a8f98"


def write_page(journal: Journal, path: Path, curves: Sequence[Curve] = ()) -> None:
    """Writes a study's page: figures, table of edits, chosen prompts, configuration.

    Args:
      journal: of a study with at least one edit.
      path: of the .html file.
      curves: to be drawn beside the study's own.

    Raises:
      ValueError: where the journal holds no edit.
    """
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    steps, config, single = edit_steps(journal), journal.run["config"], is_single(journal)
    figures = {
        "Perplexity after each edit": perplexity_plot(journal, steps, curves),
        "How well the damage was predicted": damage_prediction_plot(steps, single),
        "Retention: P(new) of each fact as more are written": retention_plot(journal, steps),
        "Seconds of each phase": time_plot(steps),
    }
    look = {
        "displaylogo": False,
        "responsive": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    }
    loader = PackageLoader("jaxedit.reports", ".")
    page = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = page.get_template(TEMPLATE).render(
        title=f"{config['editor']['method']} on {config['model']}",
        summary=summary(journal, steps),
        figures={
            title: figure.to_html(full_html=False, include_plotlyjs=False, config=look)
            for title, figure in figures.items()
            if figure
        },
        header=list(zip(HEADER, (name in NUMBERS for name in HEADER), strict=True)),
        rows=[table_cells(record, single) for record in steps],
        outcomes=sorted({outcome(record, single) for record in steps}),
        said=prompt_continuations(journal, steps),
        paper=paper_numbers(journal),
        paper_title=PAPER_TITLE,
        run=json.dumps(journal.run, indent=2, ensure_ascii=False),
        plotlyjs=get_plotlyjs(),
    )
    write_atomic(path, text.encode())


def table_cells(record: StepRecord, single: bool) -> dict[str, Any]:
    """Returns an edit as the page's table has it: cells with what they are sorted by, and texts."""
    perplexity = record.perplexity or {}
    sorted_by = {
        "#": record.step,
        "P(new)": (record.metrics or {}).get("probability_new"),
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
        "error": record.error,
    }


def prompt_continuations(journal: Journal, steps: list[StepRecord]) -> list[dict[str, Any]]:
    """Lists the study's prompts, each with what the model says to it after which edits."""
    records = [journal.steps[0].record, *steps]
    said = [(record.step, record.prompt_continuations) for record in records]
    known = [(step, texts) for step, texts in said if texts is not None]
    prompts = journal.run["config"].get("eval", {}).get("prompts") or ()
    return [
        {"prompt": prompt, "said": [(step, texts[i]) for step, texts in known]}
        for i, prompt in enumerate(prompts)
    ]


def perplexity_plot(
    journal: Journal, steps: list[StepRecord], curves: Sequence[Curve] = ()
) -> "Figure":
    """Plots perplexity against edits on a logarithmic axis; a mark says what its edit is."""
    from plotly.graph_objects import Figure

    # Heights: what is not finite is drawn at the top.
    single, unedited = is_single(journal), unedited_perplexity(journal)
    measured = [record for record in steps if record.perplexity]
    perplexities = measured_steps(measured)
    (base, *heights), _ = clip_for_plot([unedited, *perplexities.values()])
    height = dict(zip(perplexities, heights, strict=True))
    figure = Figure()

    # The kept edits and the curves of others as lines.
    kept = [(0, base), *((record.step, height[record.step]) for record in measured if record.kept)]
    if len(kept) > 1:
        x, y = zip(*kept, strict=True)
        look = dict(mode="lines", line=dict(color=GREY, width=1), hoverinfo="skip")
        figure.add_scatter(x=x, y=y, name="kept", showlegend=False, **look)
    curves = [curve.up_to(steps[-1].step) for curve in curves]
    for curve in curves:
        look = dict(mode="lines", line=dict(color=GREY, width=1.5, dash="dashdot"))
        figure.add_scatter(x=curve.edits, y=curve.perplexity, name=curve.name, **look)

    # Every edit as a mark.
    hover = "%{x}: %{customdata[0]}<br>perplexity %{customdata[1]}<br>says: %{customdata[2]}"
    for name, (color, symbol) in MARKS.items():
        chosen = [record for record in measured if outcome(record, single) == name]
        if not chosen:
            continue
        about = [
            [
                html.escape(record.request_summary),
                format_number(perplexities[record.step]),
                html.escape(record.continuation or ""),
            ]
            for record in chosen
        ]
        figure.add_scatter(
            x=[record.step for record in chosen],
            y=[height[record.step] for record in chosen],
            mode="markers",
            marker=dict(color=color, symbol=symbol, size=9 if symbol == "x" else 7),
            name=name,
            customdata=about,
            hovertemplate=hover + "<extra></extra>",
        )
    _add_level(figure, COLLAPSE_PPL, "collapse: 1000", "dash", "bottom")
    _add_level(figure, base, f"unedited: {format_number(unedited)}", "dot", "top")
    shown = [base, COLLAPSE_PPL, *heights, *(y for curve in curves for y in curve.perplexity)]
    low, high = np.log10(min(shown)) - 0.3, np.log10(max(shown)) + 0.4
    figure.update_yaxes(
        type="log",
        title="perplexity (mean over texts)",
        exponentformat="power",
        dtick=max(1, round((high - low) / 8)),
        range=[low, high],
    )
    figure.update_xaxes(title="edit", range=[-0.5, steps[-1].step + 0.5])
    return _without_background(figure, 420)


def _add_level(figure: "Figure", level: float, text: str, dash: str, side: str) -> None:
    """A named horizontal line on a logarithmic axis."""
    line = dict(color=GREY, width=1, dash=dash)
    figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=level, y1=level, line=line)
    # On a logarithmic axis an annotation stands at a power of ten, a shape does not.
    place = dict(xref="paper", x=1, xanchor="right", y=np.log10(level), yanchor=side)
    figure.add_annotation(text=text, showarrow=False, font=dict(size=11), **place)


def damage_prediction_plot(steps: list[StepRecord], single: bool) -> "Figure | None":
    """Plots the change of the loss against each predictor; None where there is none."""
    from plotly.subplots import make_subplots

    predictors = damage_predictors(steps, single)
    if not predictors:
        return None
    records = measured_damage(steps).records
    names = [html.escape(record.request_summary) for record in records]
    colors = [MARKS["damaging" if record.guard_code else "measured"][0] for record in records]
    titles = [f"Spearman {each.spearman:.2f}, AUC {each.auc:.3f}" for each in predictors]
    grid: Any = dict(shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    figure = make_subplots(1, len(predictors), **grid)
    for column, each in enumerate(predictors, 1):
        figure.add_scatter(
            x=each.value,
            y=each.change_nats,
            mode="markers",
            marker=dict(color=colors, size=6),
            text=names,
            showlegend=False,
            hovertemplate="%{text}<br>%{x:.3g}, %{y:+.3f} nats<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(type="log", title=each.name, row=1, col=column)
    figure.update_yaxes(title="change of the mean loss (nats a token)", row=1, col=1)
    return _without_background(figure, 380)


def retention_plot(journal: Journal, steps: list[StepRecord]) -> "Figure | None":
    """Plots retention as fact x time; None with fewer than two evaluations."""
    from plotly.graph_objects import Figure

    edits, evaluations, values = retention_table(journal)
    if len(evaluations) < 2:
        return None
    names = {}
    for record in steps:
        short = shorten(record.request_summary, 48, placeholder="…")
        names[record.step] = f"{record.step}: {html.escape(short)}"
    figure = Figure()
    figure.add_heatmap(
        z=values,
        x=[str(step) for step in evaluations],
        y=[names[edit] for edit in edits],
        zmin=0,
        zmax=1,
        colorscale="Viridis",
        hoverongaps=False,
        hovertemplate="%{y}<br>after %{x} edits: P(new) %{z:.3f}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="edits made", type="category")
    return _without_background(figure, 160 + 16 * len(edits))


def time_plot(steps: list[StepRecord]) -> "Figure":
    """Plots the seconds of each phase, over all edits."""
    from plotly.graph_objects import Figure

    total_s, figure = phase_times(steps), Figure()
    figure.add_bar(
        x=list(total_s.values()),
        y=list(total_s),
        orientation="h",
        marker=dict(color=MARKS["kept"][0]),
        hovertemplate="%{y}: %{x:.2f} s<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="seconds")
    return _without_background(figure, 120 + 28 * len(total_s))


def _without_background(figure: "Figure", height: int) -> "Figure":
    """The page's style colours text and lines, so that light and dark are one drawing."""
    clear, grid = "rgba(0,0,0,0)", "rgba(128,128,128,0.25)"
    figure.update_layout(
        template="none",
        height=height,
        margin=dict(l=70, r=30, t=40, b=50),
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        modebar=dict(bgcolor=clear),
        legend=dict(orientation="h", y=1.12),
        font=dict(family="inherit", size=13),
    )
    figure.update_xaxes(gridcolor=grid, zeroline=False)
    figure.update_yaxes(gridcolor=grid, zeroline=False)
    return figure
