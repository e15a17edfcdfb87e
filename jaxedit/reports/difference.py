"""What differs between two studies: their configurations, their facts, their outcomes."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxedit.files import flatten_keys, to_json
from jaxedit.reports.formatting import format_number, format_percent
from jaxedit.reports.records import (
    edit_steps,
    is_single,
    measured_steps,
    outcome,
    unedited_perplexity,
)
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord

EDIT_HEADER = ["# 1", "# 2", "edit", "outcome 1", "outcome 2", "P(new) 1", "P(new) 2"]
EDIT_HEADER += ["ratio 1", "ratio 2"]


class Difference(NamedTuple):
    """What differs between two studies; each entry is empty where nothing does.

    Attributes:
      settings: of run.json (dotted keys): key, and what each has (None: it lacks the key).
      only_first: the edits that the second study was not asked for.
      only_second: those that the first was not.
      outcomes: of the studies as wholes: what, and what each has.
      edits: the records of an edit that both were asked for, where it came out differently.
    """

    settings: list[tuple[str, Any, Any]]
    only_first: list[StepRecord]
    only_second: list[StepRecord]
    outcomes: list[tuple[str, str, str]]
    edits: list[tuple[StepRecord, StepRecord]]


def diff_studies(first: Journal, second: Journal) -> Difference:
    """Compare two studies; edits belong together that write the same request.

    Raises:
      ValueError: where one of them holds no edit yet.
    """
    # What was asked, and how.
    a, b = flatten_keys(to_json(first.run)), flatten_keys(to_json(second.run))
    keys = [*a, *(key for key in b if key not in a)]
    settings = [
        (key, a.get(key), b.get(key))
        for key in keys
        if key != "schema" and a.get(key) != b.get(key)
    ]
    mine, theirs = _by_request(edit_steps(first)), _by_request(edit_steps(second))

    # What came out: of each edit, and in all.
    both = [(mine[key], theirs[key]) for key in mine if key in theirs]
    single = is_single(first), is_single(second)
    outcomes = [
        (name, *values)
        for name, count in OUTCOMES.items()
        if len({*(values := (count(first), count(second)))}) > 1
    ]
    return Difference(
        settings=settings,
        only_first=[record for key, record in mine.items() if key not in theirs],
        only_second=[record for key, record in theirs.items() if key not in mine],
        outcomes=outcomes,
        edits=[pair for pair in both if _result(pair[0], single[0]) != _result(pair[1], single[1])],
    )


def edit_row(pair: tuple[StepRecord, StepRecord], single: tuple[bool, bool]) -> list[str]:
    """Return an edit of two studies as cells under `EDIT_HEADER`.

    Args:
      pair: its records.
      single: whether each study's edits are single ones.
    """
    results = [_result(record, each) for record, each in zip(pair, single, strict=True)]
    cells = [*(str(record.step) for record in pair), pair[0].request_summary]
    cells += [str(result[0]) for result in results]
    cells += ["–" if result[1] is None else f"{float(result[1]):.3f}" for result in results]
    return cells + ["–" if r[2] is None else format_number(r[2]) for r in results]


def _by_request(steps: list[StepRecord]) -> dict[tuple[Any, ...], StepRecord]:
    """Index edits by their (first) request, the same one asked again by how often it was before."""
    seen: Counter[tuple[Any, ...]] = Counter()
    found = {}
    for record in steps:
        asked = (record.prompt, record.subject, record.target_new, record.n_requests)
        found[*asked, seen[asked]] = record
        seen[asked] += 1
    return found


def _result(record: StepRecord, single: bool) -> list[Any]:
    """Return what came out of an edit: its outcome, P(new), ratio, accuracy.

    Numbers that are not finite are texts, so that the same ones are equal.
    """
    metrics, perplexity = record.metrics or {}, record.perplexity or {}
    measured = [metrics.get("probability_new"), perplexity.get("ratio")]
    return to_json([outcome(record, single), *measured, metrics.get("efficacy_accuracy")])


def _count(name: str) -> Callable[[Journal], str]:
    """Make a function that counts a study's edits with an outcome."""

    def count(journal: Journal) -> str:
        single = is_single(journal)
        return str(sum(outcome(record, single) == name for record in edit_steps(journal)))

    return count


def _unedited(journal: Journal) -> str:
    return format_number(unedited_perplexity(journal))


def _highest_ratio(journal: Journal) -> str:
    measured = [record.perplexity for record in _made(journal) if record.perplexity]
    ratios = [float(perplexity["ratio"]) for perplexity in measured]
    return format_number(max(ratios)) if ratios else "–"


def _last(journal: Journal) -> str:
    kept = measured_steps([record for record in _made(journal) if record.was_kept])
    return format_number(list(kept.values())[-1]) if kept else "–"


def _accuracy(journal: Journal) -> str:
    shares = [float((record.metrics or {})["efficacy_accuracy"]) for record in _made(journal)]
    sizes = [record.n_requests or 1 for record in _made(journal)]
    return format_percent(float(np.average(shares, weights=sizes)) if shares else None)


def _made(journal: Journal) -> list[StepRecord]:
    return [record for record in edit_steps(journal) if record.is_made]


OUTCOMES: dict[str, Callable[[Journal], str]] = {
    "edits asked for": lambda journal: str(len(edit_steps(journal))),
    **{
        f"edits {name}": _count(name)
        for name in ("kept", "kept, damaging", "rolled back", "undone", "measured", "damaging")
    },
    "edits not possible": _count("not edited"),
    "edits skipped": _count("skipped"),
    "unedited perplexity": _unedited,
    "highest ratio of perplexities": _highest_ratio,
    "perplexity after the last edit kept": _last,
    "accuracy right after each edit": _accuracy,
}
