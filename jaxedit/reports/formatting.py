"""Numbers and tables as reports show them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL
from jaxedit.messages import escape_markdown

HIGHEST_PPL = 1e100  # what a figure draws larger perplexities as, infinite ones included


def format_number(value: Any) -> str:
    """Format a number for people: thousands separated, small ones with three figures."""
    value = float(value)
    if not np.isfinite(value):
        return str(value)
    if round(abs(value), 1) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def format_perplexity(perplexity: Mapping[str, Any]) -> str:
    """Format a record's perplexity (mean over texts), by its logarithm where it overflowed."""
    mean, log_nats = severity(perplexity)
    if np.isfinite(mean) or not np.isfinite(log_nats):
        return format_number(mean)
    return f"1e{round(log_nats / np.log(10))}"


def severity(perplexity: Mapping[str, Any]) -> tuple[float, float]:
    """Return what perplexities are ordered by, those that overflowed by their logarithm."""
    return float(perplexity["mean"]), float(perplexity.get("log_mean_nats", np.inf))


def name_of_top(perplexities: Iterable[Mapping[str, Any]]) -> str | None:
    """Say what is drawn at the top of a figure (`clip_for_plot`); None: nothing is."""
    beyond = [each for each in perplexities if not np.isfinite(float(each["mean"]))]
    if not beyond:
        return None
    worst = format_perplexity(max(beyond, key=severity))
    return f"up to {worst}" if worst.startswith("1e") else "not finite"


def format_statistic(value: float, digits: int) -> str:
    """Format a statistic with so many decimal places; NaN, where there is none, as a dash."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def format_percent(share: float | None) -> str:
    """Format a share in percent; None, where there is none, as a dash."""
    return "–" if share is None else f"{100 * share:.0f} %"


def format_ranges(numbers: Sequence[int]) -> str:
    """Format numbers that grow, those in a row as first and last: "3, 6-9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def clip_for_plot(perplexities: Sequence[float]) -> tuple[np.ndarray, float]:
    """Return perplexities as a figure shows them, and the highest place in it.

    What is not finite is drawn at ten times the highest of the others.
    """
    values = np.array(perplexities, float)
    finite = values[np.isfinite(values)]
    top = 10.0 * min(HIGHEST_PPL, max([COLLAPSE_PPL, *finite]))
    return np.where(np.isfinite(values), np.minimum(values, top), top), top


def escape_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table, on one line."""
    return escape_markdown(text.replace("\r", "⏎").replace("\n", "⏎"))


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] | None = None
) -> list[str]:
    """Write a Markdown table as lines; a bar or a line break in a cell is text.

    Args:
      header: the titles.
      rows: cells.
      right: which columns are aligned right; None: all but the first.
    """
    right = [i > 0 for i in range(len(header))] if right is None else right
    rule = "|" + "".join("---:|" if is_right else "---|" for is_right in right)
    lines = ["| " + " | ".join(map(escape_cell, cells)) + " |" for cells in [header, *rows]]
    return [lines[0], rule, *lines[1:]]
