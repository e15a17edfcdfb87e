"""Several studies of one configuration beside each other: a table, a figure, comparison.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.files import write_atomic
from jaxedit.messages import escape_markdown
from jaxedit.reports.comparison_figures import comparison_figure
from jaxedit.reports.curves import Curve
from jaxedit.reports.figures import save_figure
from jaxedit.reports.formatting import (
    format_number,
    format_percent,
    format_perplexity,
    markdown_table,
    severity,
)
from jaxedit.reports.records import is_single
from jaxedit.reports.studies import FinishedStudy
from jaxedit.study.record import StepRecord

FIGURE = "comparison"


class EditFacts(NamedTuple):
    """What was measured of one edit's facts, on average, and the record of that edit."""

    metrics: Mapping[str, Any]
    record: StepRecord

    def n_facts(self, key: str) -> int:
        """Count the facts that have a metric."""
        n_facts = self.record.n_requests or 1
        return (self.record.n_requests_by_metric or {}).get(key, n_facts)


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
    lines = [f"# {escape_markdown(title)}", "", f"Unedited perplexity {unedited}.", ""]
    lines += [*markdown_table(comparison_header(studies), rows), ""]
    path = folder / "comparison.md"
    write_atomic(path, "\n".join([*lines, f"![perplexity]({FIGURE}.png)", ""]))
    return path


def measured_at(studies: list[FinishedStudy], most: int = 6) -> list[int]:
    """List numbers of facts after which every study measured the perplexity, with the last.

    They are evenly spaced.
    """
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
        ppl = [f"ppl after {n_facts}" for n_facts in measured_at(studies)]
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
    models = [[EditFacts(record.metrics or {}, record) for record in made]]
    if sequential:
        kept = [record for record in made if record.kept]
        retained = zip(study.retained, kept, strict=bool(study.retained))
        models.append([EditFacts(facts, record) for facts, record in retained])
    shares = [_share(model, key) for key in METRICS for model in models]
    efficacy, paraphrase, neighbourhood = (
        _share(models[-1], f"{name}_success")
        for name in ("efficacy", "paraphrase", "neighbourhood")
    )
    score = harmonic_mean(efficacy, paraphrase, neighbourhood)
    shares += [paraphrase, neighbourhood, score]

    # Perplexities, and times.
    facts_after = study.facts_after
    perplexities = {facts_after[each.step]: each.perplexity for each in made if each.perplexity}
    worst = max(perplexities.values(), key=severity, default=None)
    cells = ["–" if worst is None else format_perplexity(worst)]
    if sequential:
        cells += [format_perplexity(perplexities[n_facts]) for n_facts in measured_at(studies)]
    times_s = [(record.time_s or {})["edit"] for record in made]
    n_facts = sum(record.n_requests or 1 for record in made)
    median = f"{np.median(times_s):.1f}" if made else "–"
    return [study.name, str(n_facts), *map(format_percent, shares), *cells, median]


def is_sequential(studies: list[FinishedStudy]) -> bool:
    """Tell whether any of the studies made its edits one after the other."""
    return not all(is_single(study.journal) for study in studies)


def harmonic_mean(*shares: float | None) -> float | None:
    """Return S of the ROME and MEMIT papers, from ES, PS and NS; None where one is missing."""
    present = [share for share in shares if share is not None]
    if len(present) < len(shares):
        return None
    return len(present) / sum(1 / share for share in present) if all(present) else 0.0


def _share(measured: Sequence[EditFacts], key: str) -> float | None:
    """Average a metric over facts; None where it was not measured."""
    found = [each for each in measured if each.metrics.get(key) is not None]
    if not found:
        return None
    values = [float(each.metrics[key]) for each in found]
    return float(np.average(values, weights=[each.n_facts(key) for each in found]))
