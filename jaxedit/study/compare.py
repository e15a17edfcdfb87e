"""Several studies of one configuration file beside each other: a table, a figure, comparison.md."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.edits.journal import Journal, read_journal
from jaxedit.study.foresight import COLLAPSE_PPL
from jaxedit.study.reference import Curve, draw_curves
from jaxedit.study.words import edit_steps, number

FIGURE = "comparison"


class Outcome(NamedTuple):
    """A finished study: its variant's name, the journal, and what is retained of its facts."""

    name: str
    journal: Journal
    retained: list[dict[str, Any]]

    @property
    def unedited(self) -> float:
        """The unedited model's perplexity."""
        return float(self.journal.steps[0].record["perplexity"]["mean"])

    @property
    def made(self) -> list[dict[str, Any]]:
        """The records of the edits that were made."""
        return [record for record in edit_steps(self.journal) if "error" not in record]


def read_outcomes(folder: Path, variants: tuple[str, ...]) -> list[Outcome]:
    """The finished studies in a folder, in the order of the variants; single edits are not retained."""
    outcomes = []
    for name in variants:
        path = folder / name / "retained.json"
        held = json.loads(path.read_text(encoding="utf-8"))["facts"] if path.is_file() else []
        outcomes.append(Outcome(name, read_journal(folder / name), held))
    return outcomes


def write(folder: Path, title: str, outcomes: list[Outcome], curves: Sequence[Curve] = ()) -> Path:
    """Writes comparison.md and the figure, with curves beside the studies' own; returns the former."""
    cells = [header(outcomes), *(row(outcome, outcomes) for outcome in outcomes)]
    table = ["| " + " | ".join(line) + " |" for line in cells]
    table.insert(1, "|---|" + "---:|" * (len(cells[0]) - 1))
    figure(outcomes, folder / FIGURE, curves)
    lines = [f"# {title}", "", f"Unedited perplexity {number(outcomes[0].unedited)}.", "", *table, ""]
    (folder / "comparison.md").write_text("\n".join([*lines, f"![perplexity]({FIGURE}.png)", ""]), encoding="utf-8")
    return folder / "comparison.md"


def measured_at(outcomes: list[Outcome], most: int = 6) -> list[int]:
    """Steps at which every study measured the perplexity, at most so many, evenly spaced and with the last."""
    sets = [{record["step"] for record in outcome.made if "perplexity" in record} for outcome in outcomes]
    common = sorted(set.intersection(*sets))
    places = np.unique(np.linspace(0, len(common) - 1, min(most, len(common))).round().astype(int)) if common else []
    return [common[i] for i in places]


SHARES = (("efficacy", "efficacy"), ("greedy_new", "says it"), ("prefixed_greedy", "says it behind a prefix"))


def header(outcomes: list[Outcome]) -> list[str]:
    """The table's titles."""
    spans = ("at once", "at the end") if any(outcome.retained for outcome in outcomes) else ("at once",)
    titles = [f"{title} {span}" for _, title in SHARES for span in spans] + ["paraphrases", "neighbours", "S"]
    steps = measured_at(outcomes)
    ppl = [f"ppl after {step}" for step in steps] if len(spans) > 1 else []
    return ["method", "facts", *titles, "highest ppl", *ppl, "s an edit"]


def row(outcome: Outcome, outcomes: list[Outcome]) -> list[str]:
    """A study as the cells of the table: shares of facts in percent, perplexities, the median time of an edit.

    Paraphrases, neighbours and the score S, their harmonic mean with the efficacy, are those at the end of a sequence, or of
    each single edit.
    """
    made, sequential = outcome.made, any(other.retained for other in outcomes)
    at_once = [record["fact"] for record in made]
    spans = [at_once, outcome.retained] if sequential else [at_once]
    shares = [_share(_mean(found, key)) for key, _ in SHARES for found in spans]
    last = {key: _mean(spans[-1], key) for key in ("efficacy", "paraphrase", "neighbourhood")}
    shares += [_share(last["paraphrase"]), _share(last["neighbourhood"]), _share(score(*last.values()))]
    ppl = {record["step"]: float(record["perplexity"]["mean"]) for record in made if "perplexity" in record}
    cells = [number(max(ppl.values()))] if ppl else ["–"]
    cells += [number(ppl[step]) for step in measured_at(outcomes)] if sequential else []
    time_s = float(np.median([record["time_s"]["edit"] for record in made])) if made else 0.0
    return [outcome.name, str(sum(r.get("n_requests", 1) for r in made)), *shares, *cells, f"{time_s:.1f}"]


def score(*shares: float | None) -> float | None:
    """S of the ROME and MEMIT papers: the harmonic mean of ES, PS and NS; None where one is missing."""
    present = [share for share in shares if share is not None]
    if len(present) < len(shares):
        return None
    return len(present) / sum(1 / share for share in present) if all(present) else 0.0


def _mean(found: list[dict[str, Any]], key: str) -> float | None:
    values = [float(fact[key]) for fact in found if fact.get(key) is not None]
    return float(np.mean(values)) if values else None


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def figure(outcomes: list[Outcome], path: Path, curves: Sequence[Curve] = ()) -> None:
    """The comparison as path.png and path.pdf, readable in greyscale: curves over edits, or what one edit each has to weigh."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure_, axes = pyplot.subplots(figsize=(7.0, 4.0), layout="constrained")
    if all(len(outcome.made) == 1 for outcome in outcomes):
        _trade_off(outcomes, axes)
    else:
        _curves(outcomes, axes, curves)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    for suffix in (".png", ".pdf"):
        figure_.savefig(path.with_suffix(suffix), dpi=200)
    pyplot.close(figure_)


def _trade_off(outcomes: list[Outcome], axes) -> None:
    """The share of facts that hold against the perplexity ratio, a line for each part of the names before an "@"."""
    from matplotlib import pyplot

    groups: dict[str, list[tuple[float, float, str]]] = {}
    for outcome in outcomes:
        (record,) = outcome.made
        group, _, value = outcome.name.partition("@")
        efficacy = record["fact"]["efficacy"]  # None where the facts have no true answers
        place = float(record["perplexity"]["ratio"]), np.nan if efficacy is None else 100 * float(efficacy), value
        groups.setdefault(group, []).append(place)
    for i, (group, places) in enumerate(groups.items()):
        ratio, efficacy, values = zip(*places, strict=True)
        color = pyplot.get_cmap("viridis")(0.9 * i / max(1, len(groups) - 1))
        axes.plot(ratio, efficacy, "-", marker="osD^vPX*"[i % 8], markersize=5, color=color, label=group)
        for j, place in enumerate(zip(ratio, efficacy, values, strict=True)):  # turn about: neighbours lie close
            axes.annotate(place[2], place[:2], xytext=(4, (5, -9)[j % 2]), textcoords="offset points", fontsize=6, color=color)
    axes.set_xlabel("perplexity of the edited model / of the unedited one")
    axes.set_ylabel("efficacy (%)")


def _curves(outcomes: list[Outcome], axes, beside: Sequence[Curve]) -> None:
    """Perplexity against edits on a logarithmic axis, a line a method."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    styles = [(marker, line) for line in ("-", "--", ":") for marker in "osD^vPX*"]
    for i, outcome in enumerate(outcomes):
        points = [(0, outcome.unedited)]
        points += [(r["step"], float(r["perplexity"]["mean"])) for r in outcome.made if "perplexity" in r]
        x, y = np.array(points).T
        marker, line = styles[i % len(styles)]
        color = pyplot.get_cmap("viridis")(0.9 * i / max(1, len(outcomes) - 1))
        axes.plot(x, np.where(np.isfinite(y), y, np.nan), line, marker=marker, markersize=4, color=color, label=outcome.name)
    draw_curves(axes, beside, max(outcome.made[-1]["step"] for outcome in outcomes if outcome.made))
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    if highest > COLLAPSE_PPL / 2:
        _collapse_line(axes)
    if highest < 10 * lowest:  # powers of ten alone would leave the axis without a number
        axes.yaxis.set_major_locator(pyplot.MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("edits")
    axes.set_ylabel("perplexity (mean over texts)")
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))


def _collapse_line(axes) -> None:
    axes.axhline(COLLAPSE_PPL, color="0.4", linestyle="--", linewidth=1, zorder=1)
    axes.annotate(
        "collapse: 1000", (1, COLLAPSE_PPL), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        fontsize=8, color="0.3", ha="right", va="bottom",
    )  # fmt: skip
