"""Several studies of one configuration file beside each other: a table, a figure, comparison.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.reports.curves import Curve
from jaxedit.reports.figures_of_models import draw_comparison
from jaxedit.reports.formatting import format_number
from jaxedit.reports.outcomes import Outcome

FIGURE = "comparison"


def write_comparison(
    folder: Path, title: str, outcomes: list[Outcome], curves: Sequence[Curve] = ()
) -> Path:
    """Writes comparison.md and the figure, with curves beside the studies' own; returns the former."""
    cells = [
        comparison_header(outcomes),
        *(comparison_row(outcome, outcomes) for outcome in outcomes),
    ]
    table = ["| " + " | ".join(line) + " |" for line in cells]
    table.insert(1, "|---|" + "---:|" * (len(cells[0]) - 1))
    draw_comparison(outcomes, folder / FIGURE, curves)
    lines = [
        f"# {title}",
        "",
        f"Unedited perplexity {format_number(outcomes[0].unedited)}.",
        "",
        *table,
        "",
    ]
    (folder / "comparison.md").write_text(
        "\n".join([*lines, f"![perplexity]({FIGURE}.png)", ""]), encoding="utf-8"
    )
    return folder / "comparison.md"


def measured_at(outcomes: list[Outcome], most: int = 6) -> list[int]:
    """Steps at which every study measured the perplexity, at most so many, evenly spaced and with
    the last.
    """
    sets = [
        {record["step"] for record in outcome.made if "perplexity" in record}
        for outcome in outcomes
    ]
    common = sorted(set.intersection(*sets))
    places = (
        np.unique(np.linspace(0, len(common) - 1, min(most, len(common))).round().astype(int))
        if common
        else []
    )
    return [common[i] for i in places]


SHARES = (
    ("efficacy", "efficacy"),
    ("greedy_new", "says it"),
    ("prefixed_greedy", "says it behind a prefix"),
)


def comparison_header(outcomes: list[Outcome]) -> list[str]:
    """The table's titles."""
    spans = (
        ("at once", "at the end") if any(outcome.retained for outcome in outcomes) else ("at once",)
    )
    titles = [f"{title} {span}" for _, title in SHARES for span in spans] + [
        "paraphrases",
        "neighbours",
        "S",
    ]
    steps = measured_at(outcomes)
    ppl = [f"ppl after {step}" for step in steps] if len(spans) > 1 else []
    return ["method", "facts", *titles, "highest ppl", *ppl, "s an edit"]


def comparison_row(outcome: Outcome, outcomes: list[Outcome]) -> list[str]:
    """A study as the cells of the table: shares of facts in percent, perplexities, the median time
    of an edit.

    Paraphrases, neighbours and the score S, their harmonic mean with the efficacy, are those at the
    end of a sequence, or of each single edit."""
    made, sequential = outcome.made, any(other.retained for other in outcomes)
    at_once = [record["fact"] for record in made]
    spans = [at_once, outcome.retained] if sequential else [at_once]
    shares = [_share(_mean(found, key)) for key, _ in SHARES for found in spans]
    last = {key: _mean(spans[-1], key) for key in ("efficacy", "paraphrase", "neighbourhood")}
    shares += [
        _share(last["paraphrase"]),
        _share(last["neighbourhood"]),
        _share(harmonic_mean(*last.values())),
    ]
    ppl = {
        record["step"]: float(record["perplexity"]["mean"])
        for record in made
        if "perplexity" in record
    }
    cells = [format_number(max(ppl.values()))] if ppl else ["–"]
    cells += [format_number(ppl[step]) for step in measured_at(outcomes)] if sequential else []
    time_s = float(np.median([record["time_s"]["edit"] for record in made])) if made else 0.0
    return [
        outcome.name,
        str(sum(r.get("n_requests", 1) for r in made)),
        *shares,
        *cells,
        f"{time_s:.1f}",
    ]


def harmonic_mean(*shares: float | None) -> float | None:
    """S of the ROME and MEMIT papers: the harmonic mean of ES, PS and NS; None where one is
    missing.
    """
    present = [share for share in shares if share is not None]
    if len(present) < len(shares):
        return None
    return len(present) / sum(1 / share for share in present) if all(present) else 0.0


def _mean(found: list[dict[str, Any]], key: str) -> float | None:
    values = [float(fact[key]) for fact in found if fact.get(key) is not None]
    return float(np.mean(values)) if values else None


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
