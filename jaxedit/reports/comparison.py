"""Several studies of one configuration beside each other: a table, a figure, comparison.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.reports.comparison_figures import comparison_figure
from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import save_figure
from jaxedit.reports.formatting import format_number, markdown_table
from jaxedit.reports.studies import FinishedStudy

FIGURE = "comparison"
# Metric -> title. Of these a sequence has two columns: right after each fact's edit, and after all.
METRICS = {
    "efficacy_success": "efficacy",
    "efficacy_accuracy": "accuracy",
    "prefixed_accuracy": "prefixed accuracy",
}


def write_comparison(
    folder: Path, title: str, studies: list[FinishedStudy], curves: Sequence[Curve] = ()
) -> Path:
    """Write comparison.md and its figure; return the path of the former.

    Args:
      folder: where to.
      title: of the document.
      studies: at least one.
      curves: to be drawn beside them.
    """
    save_figure(comparison_figure(studies, curves), folder / FIGURE)
    rows = [comparison_row(study, studies) for study in studies]
    unedited = format_number(studies[0].unedited)
    lines = [f"# {title}", "", f"Unedited perplexity {unedited}.", ""]
    lines += [*markdown_table(comparison_header(studies), rows), ""]
    path = folder / "comparison.md"
    path.write_text("\n".join([*lines, f"![perplexity]({FIGURE}.png)", ""]), encoding="utf-8")
    return path


def measured_at(studies: list[FinishedStudy], most: int = 6) -> list[int]:
    """List steps at which every study measured the perplexity: evenly spaced, with the last."""
    common = sorted(set.intersection(*(set(study.perplexities) for study in studies)))
    if not common:
        return []
    places = np.linspace(0, len(common) - 1, min(most, len(common))).round().astype(int)
    return [common[i] for i in np.unique(places)]


def comparison_header(studies: list[FinishedStudy]) -> list[str]:
    """Return the titles of the table's columns."""
    titles, ppl = list(METRICS.values()), []
    if is_sequential(studies):
        titles = [
            f"{title} {when}" for title in titles for when in ("after its edit", "after all edits")
        ]
        ppl = [f"ppl after {step}" for step in measured_at(studies)]
    beside = ["paraphrase", "neighbourhood", "S"]
    return ["method", "facts", *titles, *beside, "highest ppl", *ppl, "s per edit"]


def comparison_row(study: FinishedStudy, studies: list[FinishedStudy]) -> list[str]:
    """Return a study as cells of the table.

    Shares of facts in percent, perplexities, the median time of an edit. Paraphrase, neighbourhood
    and the score S, their harmonic mean with the efficacy, are those after all edits of a sequence,
    or of each single edit.

    Args:
      study: one of the studies.
      studies: all that are compared.
    """
    # Shares of facts: in the model right after their edit, and in the last one of a sequence.
    made, sequential = study.made, is_sequential(studies)
    at_once = [record.metrics or {} for record in made]
    models = [at_once, study.retained] if sequential else [at_once]
    shares = [_mean(metrics, key) for key in METRICS for metrics in models]
    efficacy, paraphrase, neighbourhood = (
        _mean(models[-1], f"{name}_success") for name in ("efficacy", "paraphrase", "neighbourhood")
    )
    score = harmonic_mean(efficacy, paraphrase, neighbourhood)
    shares += [paraphrase, neighbourhood, score]

    # Perplexities, and times.
    perplexities = study.perplexities
    cells = [format_number(max(perplexities.values()))] if perplexities else ["–"]
    if sequential:
        cells += [format_number(perplexities[step]) for step in measured_at(studies)]
    times_s = [(record.time_s or {})["edit"] for record in made]
    n_facts = sum(record.n_requests or 1 for record in made)
    median_s = float(np.median(times_s)) if made else 0.0
    return [study.name, str(n_facts), *map(_percent, shares), *cells, f"{median_s:.1f}"]


def is_sequential(studies: list[FinishedStudy]) -> bool:
    """Tell whether any of the studies asked about its facts again after all edits."""
    return any(study.retained for study in studies)


def harmonic_mean(*shares: float | None) -> float | None:
    """Return S of the ROME and MEMIT papers, from ES, PS and NS; None where one is missing."""
    present = [share for share in shares if share is not None]
    if len(present) < len(shares):
        return None
    return len(present) / sum(1 / share for share in present) if all(present) else 0.0


def _mean(metrics: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [float(each[key]) for each in metrics if each.get(key) is not None]
    return float(np.mean(values)) if values else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
