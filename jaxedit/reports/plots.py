"""The figures of the page as plotly draws them: a mark says what it is when it is pointed at."""

import html
import math
from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL, damage_predictors, measured_damage
from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import predictor_title
from jaxedit.reports.formatting import clip_for_plot, format_number, format_perplexity, name_of_top
from jaxedit.reports.records import (
    is_single,
    measured_steps,
    outcome,
    phase_times,
    retention_table,
    unedited_perplexity,
)
from jaxedit.rounding import ceil_div
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Colours that are readable on white and on black.
HARMLESS, DAMAGING, GREY = "#2f81c7", "#d6453d", "#8a8f98"
LINEAR_NATS = 0.01  # changes of the loss under this are drawn on a linear scale
# What became of an edit -> colour and mark.
MARKS = {
    "kept": (HARMLESS, "circle"),
    "measured": (HARMLESS, "circle"),
    "kept, damaging": (DAMAGING, "square"),
    "damaging": (DAMAGING, "x"),
    "rolled back": (DAMAGING, "x"),
    "undone": (GREY, "circle-open"),
}


def perplexity_plot(
    journal: Journal, steps: list[StepRecord], curves: Sequence[Curve] = ()
) -> "Figure":
    """Plot perplexity against edits on a logarithmic axis.

    A perplexity that is not finite is drawn at ten times the highest of the others.

    Args:
      journal: of the study.
      steps: the records of its edits.
      curves: to be drawn beside the study's own.
    """
    from plotly.graph_objects import Figure

    # What is drawn, and how high.
    single, unedited = is_single(journal), unedited_perplexity(journal)
    measured = [record for record in steps if record.perplexity]
    perplexities = measured_steps(measured)
    (base, *heights), top = clip_for_plot([unedited, *perplexities.values()])
    height = dict(zip(perplexities, heights, strict=True))
    figure = Figure()

    # The edits that were kept when they were made and the curves of others as lines.
    line = [record.step for record in measured if record.was_kept]
    kept = [(0, base), *((step, height[step]) for step in line)]
    if len(kept) > 1:
        x, y = zip(*kept, strict=True)
        look: Any = dict(mode="lines", line=dict(color=GREY, width=1), hoverinfo="skip")
        figure.add_scatter(x=x, y=y, name="kept", showlegend=False, **look)
    curves = [curve.up_to(steps[-1].step) for curve in curves]
    for i, curve in enumerate(curves):
        look = dict(mode="lines", line=dict(color=GREY, width=1.5, dash=("dashdot", "dot")[i % 2]))
        figure.add_scatter(x=curve.edits, y=curve.perplexity, name=curve.name, **look)

    # Every edit as a mark.
    for name in MARKS:
        chosen = [record for record in measured if outcome(record, single) == name]
        if chosen:
            _add_marks(figure, name, chosen, height)

    # Levels and axes.
    collapse = [COLLAPSE_PPL] if unedited <= COLLAPSE_PPL else []  # else it was there before
    for level in collapse:
        _add_level(figure, level, f"collapse: {level:g}", "dash", "bottom")
    _add_level(figure, base, f"unedited: {format_number(unedited)}", "dot", "top")
    records = [journal.steps[0].record, *measured]
    at_top = name_of_top(record.perplexity or {} for record in records)
    if at_top is not None:
        _add_level(figure, top, at_top, "dot", "bottom")
    shown = [base, *collapse, *heights, *(y for curve in curves for y in curve.perplexity)]
    low, high = np.log10(min(shown)) - 0.3, np.log10(max(shown)) + 0.4
    dtick = max(1, round((high - low) / 8))
    look = dict(type="log", exponentformat="power", dtick=dtick, range=[low, high])
    figure.update_yaxes(title="perplexity (mean over texts)", **look)
    figure.update_xaxes(title="edit", range=[-0.5, steps[-1].step + 0.5])
    return _without_background(figure, 420)


def _add_marks(
    figure: "Figure", name: str, records: list[StepRecord], height: dict[int, float]
) -> None:
    """Add the marks of edits with one outcome, each with its request and the continuation."""
    color, symbol = MARKS[name]
    about = [
        [
            html.escape(record.request_summary),
            format_perplexity(record.perplexity or {}),
            html.escape(record.continuation or ""),
        ]
        for record in records
    ]
    hover = "%{x}: %{customdata[0]}<br>perplexity %{customdata[1]}<br>says: %{customdata[2]}"
    figure.add_scatter(
        x=[record.step for record in records],
        y=[height[record.step] for record in records],
        mode="markers",
        marker=dict(color=color, symbol=symbol, size=9 if symbol == "x" else 7),
        name=name,
        customdata=about,
        hovertemplate=hover + "<extra></extra>",
    )


def _add_level(figure: "Figure", level: float, text: str, dash: str, side: str) -> None:
    """Add a named horizontal line on a logarithmic axis."""
    line = dict(color=GREY, width=1, dash=dash)
    figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=level, y1=level, line=line)
    # On a logarithmic axis an annotation stands at a power of ten, a shape does not.
    place: Any = dict(xref="paper", x=1, xanchor="right", y=np.log10(level), yanchor=side)
    figure.add_annotation(text=text, showarrow=False, font=dict(size=11), **place)


def damage_prediction_plot(steps: list[StepRecord], single: bool) -> "Figure | None":
    """Plot the change of the loss against each predictor; None where there is none."""
    from plotly.subplots import make_subplots

    predictors = damage_predictors(steps, single)
    if not predictors:
        return None

    # Of every edit its name and colour: damaging is what the AUC in the title is about.
    damage = measured_damage(steps)
    names = [html.escape(record.request_summary) for record in damage.records]
    colors = [DAMAGING if is_damaging else HARMLESS for is_damaging in damage.is_damaging]

    # A panel a predictor. A change of the loss has a sign, and may be small or enormous.
    titles = [predictor_title(each.spearman, each.auc) for each in predictors]
    grid: Any = dict(shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    figure = make_subplots(1, len(predictors), **grid)
    for column, each in enumerate(predictors, 1):
        figure.add_scatter(
            x=signed_log(each.value) if each.is_signed else each.value,
            y=signed_log(each.change_nats),
            mode="markers",
            marker=dict(color=colors, size=6),
            customdata=list(zip(names, each.value, each.change_nats, strict=True)),
            showlegend=False,
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.3g}, %{customdata[2]:+.3g} nats"
            "<extra></extra>",
            row=1,
            col=column,
        )
        scale: dict[str, Any] = dict(type="log", dtick=1)
        if each.is_signed:
            scale = signed_log_ticks(each.value)
        figure.update_xaxes(**scale, title=each.name, row=1, col=column)
    figure.update_yaxes(**signed_log_ticks(damage.change_nats))
    figure.update_yaxes(title="change of the mean loss (nats a token)", row=1, col=1)
    return _without_background(figure, 380)


def signed_log(values: np.ndarray) -> np.ndarray:
    """Place values on an axis that is linear below LINEAR_NATS and logarithmic beyond, both ways.

    What is not finite has no place: NaN.
    """
    finite = np.isfinite(values)
    return np.arcsinh(np.where(finite, values, np.nan) / LINEAR_NATS)


def signed_log_ticks(values: np.ndarray) -> dict[str, Any]:
    """Return the ticks of such an axis: 0, and powers of ten as far as the values go."""
    largest = np.max(np.abs(values[np.isfinite(values)]), initial=LINEAR_NATS)
    n_decades = 1 + math.floor(math.log10(largest / LINEAR_NATS))
    step = ceil_div(n_decades, 4)
    powers = [LINEAR_NATS * 10.0**i for i in range(0, n_decades, step)]
    ticks = np.array([*(-power for power in reversed(powers)), 0.0, *powers])
    return dict(tickvals=signed_log(ticks), ticktext=[f"{tick:g}" for tick in ticks])


def retention_plot(journal: Journal, steps: list[StepRecord]) -> "Figure | None":
    """Plot P(new) as a heat map of fact and time; None with fewer than two evaluations."""
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
        colorbar=dict(title="P(new)"),
        hoverongaps=False,
        hovertemplate="%{y}<br>after %{x} edits: P(new) %{z:.3f}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="edits made", type="category")
    return _without_background(figure, 160 + 16 * len(edits))


def time_plot(steps: list[StepRecord]) -> "Figure":
    """Plot the seconds of each phase, over all edits."""
    from plotly.graph_objects import Figure

    total_s, figure = phase_times(steps), Figure()
    figure.add_bar(
        x=list(total_s.values()),
        y=list(total_s),
        orientation="h",
        marker=dict(color=HARMLESS),
        hovertemplate="%{y}: %{x:.2f} s<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="seconds")
    return _without_background(figure, 120 + 28 * len(total_s))


def _without_background(figure: "Figure", height: int) -> "Figure":
    """Leave the colours of text and ground to the page's style: light and dark are one drawing."""
    clear, grid = "rgba(0,0,0,0)", "rgba(128,128,128,0.25)"
    figure.update_layout(
        template="none",
        height=height,
        margin=dict(l=70, r=30, t=60, b=50),
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        modebar=dict(bgcolor=clear),
        legend=dict(orientation="h", y=1.12),
        font=dict(family="inherit", size=13),
    )
    figure.update_xaxes(gridcolor=grid, zeroline=False)
    figure.update_yaxes(gridcolor=grid, zeroline=False)
    return figure
