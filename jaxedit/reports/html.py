"""The report as a page: one HTML file that needs no network, light or dark as the reader's system
is.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL, damage_predictors
from jaxedit.analyses.paper import PAPER_TITLE, paper_numbers
from jaxedit.files import write_atomic
from jaxedit.reports.curves import Curve
from jaxedit.reports.formatting import clip_for_plot, format_number
from jaxedit.reports.records import (
    HEADER,
    NUMBERS,
    edit_steps,
    is_single,
    name_of,
    outcome,
    phase_times,
    summary,
    table_row,
)
from jaxedit.reports.records import retention_table as retention
from jaxedit.study.journal import Journal

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


def write_page(journal: Journal, path: Path, curves: Sequence[Curve] = ()) -> None:
    """Writes a study's page: curve, table of edits, retention, what was foreseen, chosen prompts,
    time, configuration.

    Args:
      journal: of a study with at least one edit.
      path: of the .html file.
      curves: to be drawn beside the study's own.

    Raises:
      ValueError: where the journal holds no edit.
    """
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    steps, config = edit_steps(journal), journal.run["config"]
    drawn = {
        "Perplexity after each edit": perplexity_figure(journal, steps, curves),
        "How well the damage was foreseen": damage_prediction_figure(steps, is_single(journal)),
        "Retention: P(new) of each fact as more are written": retention_figure(journal, steps),
        "Seconds of each phase": time_figure(steps),
    }
    look = {
        "displaylogo": False,
        "responsive": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    }
    figures = {
        title: figure.to_html(full_html=False, include_plotlyjs=False, config=look)
        for title, figure in drawn.items()
        if figure
    }
    page = Environment(
        loader=PackageLoader("jaxedit.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = page.get_template(TEMPLATE).render(
        title=f"{config['editor']['method']} on {config['model']}",
        summary=summary(journal, steps),
        figures=figures,
        header=list(zip(HEADER, (name in NUMBERS for name in HEADER), strict=True)),
        rows=[table_cells(record, is_single(journal)) for record in steps],
        outcomes=sorted({outcome(record, is_single(journal)) for record in steps}),
        said=prompt_continuations(journal, steps),
        paper=paper_numbers(journal),
        paper_title=PAPER_TITLE,
        run=json.dumps(journal.run, indent=2, ensure_ascii=False),
        plotlyjs=get_plotlyjs(),
    )
    write_atomic(path, text.encode())


def table_cells(record: dict[str, Any], single: bool) -> dict[str, Any]:
    """An edit as the page's table has it: its cells, what numbers are sorted by, and what the model
    says to its question.
    """
    value = {}
    if "error" not in record:
        value = {
            "P(new)": record["fact"]["probability_new"],
            "|u·k|": record["editor"].get("denominator"),
        }
        value |= {
            "perplexity": record.get("perplexity", {}).get("mean"),
            "ratio": record.get("perplexity", {}).get("ratio"),
        }
    value["#"] = record["step"]
    return {
        "cells": [
            (text, None if value.get(name) is None else float(value[name]))
            for name, text in zip(HEADER, table_row(record, single), strict=True)
        ],
        "outcome": outcome(record, single),
        "damaging": bool(record.get("guard")),
        "before": record.get("says_before"),
        "after": record.get("says"),
        "error": record.get("error"),
    }


def prompt_continuations(journal: Journal, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The study's prompts, each with what the unedited model says and what it says after edits,
    first to last.
    """
    looks = [(0, journal.steps[0].record), *((record["step"], record) for record in steps)]
    looks = [(n, record["continuations"]) for n, record in looks if "continuations" in record]
    prompts = journal.run["config"].get("prompts") or ()
    return [
        {"prompt": prompt, "said": [(n, texts[i]) for n, texts in looks]}
        for i, prompt in enumerate(prompts)
    ]


def perplexity_figure(
    journal: Journal, steps: list[dict[str, Any]], beside: Sequence[Curve] = ()
) -> "Figure":
    """Perplexity against edits on a logarithmic axis; an edit's mark says what it is when pointed
    at.
    """
    from plotly.graph_objects import Figure

    single, unedited = is_single(journal), float(journal.steps[0].record["perplexity"]["mean"])
    measured = [record for record in steps if "perplexity" in record]
    ppl = {record["step"]: float(record["perplexity"]["mean"]) for record in measured}
    (base, *rest), _ = clip_for_plot([unedited, *ppl.values()])
    height = dict(zip(ppl, rest, strict=True))
    figure = Figure()
    kept = [(0, base), *((r["step"], height[r["step"]]) for r in measured if r["kept"])]
    if len(kept) > 1:
        x, y = zip(*kept, strict=True)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line=dict(color="#8a8f98", width=1),
            hoverinfo="skip",
            name="kept",
            showlegend=False,
        )
    beside = [other.until(steps[-1]["step"]) for other in beside]
    for other in beside:
        look = dict(color="#8a8f98", width=1.5, dash="dashdot")
        figure.add_scatter(
            x=other.edits, y=other.perplexity, mode="lines", line=look, name=other.name
        )
    for name, (color, symbol) in MARKS.items():
        chosen = [record for record in measured if outcome(record, single) == name]
        if not chosen:
            continue
        about = [
            [html.escape(name_of(r)), format_number(ppl[r["step"]]), html.escape(r["says"])]
            for r in chosen
        ]
        figure.add_scatter(
            x=[record["step"] for record in chosen],
            y=[height[record["step"]] for record in chosen],
            mode="markers",
            marker=dict(color=color, symbol=symbol, size=9 if symbol == "x" else 7),
            name=name,
            customdata=about,
            hovertemplate="%{x}: %{customdata[0]}<br>perplexity %{customdata[1]}<br>says: %{customdata[2]}<extra></extra>",
        )
    below = f"unedited: {format_number(unedited)}"
    for level, text, dash, side in (
        (COLLAPSE_PPL, "collapse: 1000", "dash", "bottom"),
        (base, below, "dot", "top"),
    ):
        figure.add_shape(
            type="line",
            xref="paper",
            x0=0,
            x1=1,
            y0=level,
            y1=level,
            line=dict(color="#8a8f98", width=1, dash=dash),
        )
        # On a logarithmic axis an annotation stands at a power of ten, a shape does not.
        at = dict(xref="paper", x=1, xanchor="right", y=np.log10(level), yanchor=side)
        figure.add_annotation(text=text, showarrow=False, font=dict(size=11), **at)
    shown = [base, COLLAPSE_PPL, *rest, *(value for other in beside for value in other.perplexity)]
    low, high = np.log10(min(shown)) - 0.3, np.log10(max(shown)) + 0.4
    figure.update_yaxes(
        type="log", title="perplexity (mean over texts)", exponentformat="power", dtick=max(1, round((high - low) / 8)),
        range=[low, high],
    )  # fmt: skip
    figure.update_xaxes(title="edit", range=[-0.5, steps[-1]["step"] + 0.5])
    return _plain(figure, 420)


def damage_prediction_figure(steps: list[dict[str, Any]], single: bool) -> "Figure | None":
    """The change of the loss against each predictor; None where there is none."""
    from plotly.subplots import make_subplots

    found = damage_predictors(steps, single)
    if not found:
        return None
    measured = [record for record in steps if "perplexity" in record]
    names = [html.escape(name_of(record)) for record in measured]
    color = [MARKS["damaging" if record["guard"] else "measured"][0] for record in measured]
    titles = [f"Spearman {each.spearman:.2f}, AUC {each.auc:.3f}" for each in found]
    figure = make_subplots(
        1, len(found), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03
    )
    for i, each in enumerate(found, 1):
        figure.add_scatter(
            x=each.value, y=each.change_nats, mode="markers", marker=dict(color=color, size=6), text=names, showlegend=False,
            hovertemplate="%{text}<br>%{x:.3g}, %{y:+.3f} nats<extra></extra>", row=1, col=i,
        )  # fmt: skip
        figure.update_xaxes(type="log", title=each.name, row=1, col=i)
    figure.update_yaxes(title="change of the mean loss (nats a token)", row=1, col=1)
    return _plain(figure, 380)


def retention_figure(journal: Journal, steps: list[dict[str, Any]]) -> "Figure | None":
    """The heat map of fact against time; None where the study looked back less than twice."""
    from plotly.graph_objects import Figure

    numbers, times, value_NT = retention(journal)
    if len(times) < 2:
        return None
    name = {
        record[
            "step"
        ]: f"{record['step']}: {html.escape(shorten(name_of(record), 48, placeholder='…'))}"
        for record in steps
    }
    figure = Figure()
    figure.add_heatmap(
        z=value_NT, x=[str(time) for time in times], y=[name[n] for n in numbers], zmin=0,
        zmax=1, colorscale="Viridis", hoverongaps=False,
        hovertemplate="%{y}<br>after %{x} edits: P(new) %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="edits made", type="category")
    return _plain(figure, 160 + 16 * len(numbers))


def time_figure(steps: list[dict[str, Any]]) -> "Figure":
    """Seconds of each phase, over all edits."""
    from plotly.graph_objects import Figure

    total_s, figure = phase_times(steps), Figure()
    figure.add_bar(
        x=list(total_s.values()), y=list(total_s), orientation="h", marker=dict(color=MARKS["kept"][0]),
        hovertemplate="%{y}: %{x:.2f} s<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="seconds")
    return _plain(figure, 120 + 28 * len(total_s))


def _plain(figure: "Figure", height: int) -> "Figure":
    """Without a background of its own: the page's style colours text and lines, so that light and
    dark are one drawing.
    """
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        template="none", height=height, margin=dict(l=70, r=30, t=40, b=50), paper_bgcolor=clear, plot_bgcolor=clear,
        modebar=dict(bgcolor=clear), legend=dict(orientation="h", y=1.12), font=dict(family="inherit", size=13),
    )  # fmt: skip
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    return figure
