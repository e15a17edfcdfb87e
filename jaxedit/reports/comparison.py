"""Several studies of one configuration beside each other: a table, a figure, comparison.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.reports.comparison_figures import comparison_figure
from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import save_figure
from jaxedit.reports.formatting import format_number, markdown_table
from jaxedit.reports.outcomes import Outcome

FIGURE = "comparison"
SHARES = {  # metric -> title
    "efficacy_success": "efficacy",
    "efficacy_accuracy": "says it",
    "prefixed_accuracy": "says it behind a prefix",
}


def write_comparison(
    folder: Path, title: str, outcomes: list[Outcome], curves: Sequence[Curve] = ()
) -> Path:
    """Writes comparison.md and its figure; returns the former.

    Args:
      folder: where to.
      title: of the document.
      outcomes: the studies.
      curves: to be drawn beside them.
    """
    save_figure(comparison_figure(outcomes, curves), folder / FIGURE)
    rows = [comparison_row(outcome, outcomes) for outcome in outcomes]
    unedited = format_number(outcomes[0].unedited)
    lines = [f"# {title}", "", f"Unedited perplexity {unedited}.", ""]
    lines += [*markdown_table(comparison_header(outcomes), rows), ""]
    path = folder / "comparison.md"
    path.write_text("\n".join([*lines, f"![perplexity]({FIGURE}.png)", ""]), encoding="utf-8")
    return path


def measured_at(outcomes: list[Outcome], most: int = 6) -> list[int]:
    """Lists steps at which every study measured the perplexity: evenly spaced, with the last."""
    common = sorted(set.intersection(*(set(outcome.perplexities) for outcome in outcomes)))
    if not common:
        return []
    places = np.linspace(0, len(common) - 1, min(most, len(common))).round().astype(int)
    return [common[i] for i in np.unique(places)]


def comparison_header(outcomes: list[Outcome]) -> list[str]:
    """Returns the table's titles."""
    sequential = any(outcome.retained for outcome in outcomes)
    spans = ("at once", "at the end") if sequential else ("at once",)
    titles = [f"{title} {span}" for title in SHARES.values() for span in spans]
    ppl = [f"ppl after {step}" for step in measured_at(outcomes)] if sequential else []
    beside = ["paraphrases", "neighbours", "S"]
    return ["method", "facts", *titles, *beside, "highest ppl", *ppl, "s an edit"]


def comparison_row(outcome: Outcome, outcomes: list[Outcome]) -> list[str]:
    """Returns a study as cells of the table.

    Shares of facts in percent, perplexities, the median time of an edit. Paraphrases, neighbours
    and the score S, their harmonic mean with the efficacy, are those at the end of a sequence, or
    of each single edit.
    """
    made, sequential = outcome.made, any(other.retained for other in outcomes)
    at_once = [record.metrics or {} for record in made]
    spans = [at_once, outcome.retained] if sequential else [at_once]
    shares = [_mean(metrics, key) for key in SHARES for metrics in spans]
    success = [
        _mean(spans[-1], f"{name}_success") for name in ("efficacy", "paraphrase", "neighbourhood")
    ]
    shares += [*success[1:], harmonic_mean(*success)]
    perplexities = outcome.perplexities
    cells = [format_number(max(perplexities.values()))] if perplexities else ["–"]
    if sequential:
        cells += [format_number(perplexities[step]) for step in measured_at(outcomes)]
    times_s = [(record.time_s or {})["edit"] for record in made]
    n_facts = sum(record.n_requests or 1 for record in made)
    median_s = float(np.median(times_s)) if made else 0.0
    return [outcome.name, str(n_facts), *map(_percent, shares), *cells, f"{median_s:.1f}"]


def harmonic_mean(*shares: float | None) -> float | None:
    """Returns S of the ROME and MEMIT papers, from ES, PS and NS; None where one is missing."""
    present = [share for share in shares if share is not None]
    if len(present) < len(shares):
        return None
    return len(present) / sum(1 / share for share in present) if all(present) else 0.0


def _mean(metrics: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [float(each[key]) for each in metrics if each.get(key) is not None]
    return float(np.mean(values)) if values else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
