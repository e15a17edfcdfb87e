"""Journal records as table rows and sentences."""

from typing import Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL
from jaxedit.edits.request import Request
from jaxedit.reports.formatting import format_number
from jaxedit.study.journal import Journal


def retention_table(
    journal: Journal, entry: str = "probability_new"
) -> tuple[list[int], list[int], np.ndarray]:
    """What the journal knows of retention: facts (edits' numbers), times (edits made), and the
    entry there, NaN where unknown.

    Only records that looked again say it: those of every `retention_every`-th edit.
    """
    records = [step.record for step in journal.steps[1:]]
    looks = [record for record in records if "retention" in record]
    times, numbers = (
        [record["step"] for record in looks],
        [record["step"] for record in records if record.get("kept")],
    )
    value_NT = np.full((len(numbers), len(times)), np.nan)
    for t, look in enumerate(looks):
        for n, number in enumerate(numbers):
            found = look["retention"].get(str(number), {}).get(entry)
            value_NT[n, t] = np.nan if found is None else float(found)
    return numbers, times, value_NT


def edit_steps(journal: Journal) -> list[dict[str, Any]]:
    """The records of the edits.

    Raises:
      ValueError: where there is none.
    """
    if len(journal.steps) < 2:
        raise ValueError(f"{journal.folder} holds no edit yet; run the study first")
    return [step.record for step in journal.steps[1:]]


def outcome(record: dict[str, Any], single: bool = False) -> str:
    """What became of an edit, in a word or two; in a study of single edits there is nothing to keep
    or roll back.
    """
    if "error" in record:
        return "held back" if record.get("held") else "not edited"
    if record["guard"]:
        return "kept, damaging" if record["kept"] else "damaging" if single else "rolled back"
    return "kept" if record["kept"] else "measured"


def name_of(record: dict[str, Any]) -> str:
    """The request in one line."""
    name = Request(record["prompt"], record["subject"], record["target_new"]).summary
    more = record.get("n_requests", 1) - 1
    return f"{name} and {more} more" if more else name


def table_row(record: dict[str, Any], single: bool = False) -> list[str]:
    """An edit as the cells of a table; see `HEADER`."""
    if "error" in record:
        return [str(record["step"]), name_of(record), "", "", "", "", "", outcome(record)]
    fact = record["fact"]
    return [
        str(record["step"]),
        name_of(record),
        format_number(record["perplexity"]["mean"]) if "perplexity" in record else "",
        format_number(record["perplexity"]["ratio"]) if "perplexity" in record else "",
        f"{float(record['before']['probability_new']):.3f} → {float(fact['probability_new']):.3f}",
        f"{fact['greedy_new']:.0%}"
        if record.get("n_requests", 1) > 1
        else "yes"
        if fact["greedy_new"]
        else "no",
        format_number(record["editor"]["denominator"]) if "denominator" in record["editor"] else "",
        outcome(record, single),
    ]


HEADER = ["#", "edit", "perplexity", "ratio", "P(new)", "says it", "|u·k|", "outcome"]

NUMBERS = ("#", "perplexity", "ratio", "|u·k|")


def is_single(journal: Journal) -> bool:
    """Whether a study measured each edit on the untouched model."""
    return journal.run["config"]["mode"] == "single"


def phase_times(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each phase over all edits."""
    total_s: dict[str, float] = {}
    for record in steps:
        for phase, time_s in record["time_s"].items():
            total_s[phase] = total_s.get(phase, 0.0) + time_s
    return total_s


def summary(journal: Journal, steps: list[dict[str, Any]]) -> list[str]:
    """The study in a few sentences."""
    config = journal.run["config"]
    done = [record for record in steps if "error" not in record]
    base = float(journal.steps[0].record["perplexity"]["mean"])
    kept = [record for record in done if record["kept"]]
    rolled = [
        record
        for record in done
        if record["guard"] and not record["kept"] and not is_single(journal)
    ]
    measured = [record for record in done if "perplexity" in record]
    damaging = [record for record in measured if float(record["perplexity"]["mean"]) > COLLAPSE_PPL]
    lines = [
        f"{config['editor']['method']} on {config['model']}, {config['mode']} edits: {len(done)} edits made, {len(kept)} kept, "
        f"{len(rolled)} rolled back, {len(steps) - len(done)} not possible.",
        f"The unedited model's perplexity is {format_number(base)}; {len(damaging)} of the edits took it over {COLLAPSE_PPL:,} "
        "(collapse).",
    ]
    last = [record for record in kept if "perplexity" in record][-1:]
    if last:
        lines.append(
            f"After the last kept edit it is {format_number(last[0]['perplexity']['mean'])}."
        )
    if done:
        sizes = [record.get("n_requests", 1) for record in done]
        says = sum(
            float(record["fact"]["greedy_new"]) * size
            for record, size in zip(done, sizes, strict=True)
        )
        lines.append(
            f"Right after its edit the model says the new fact in {says:.0f} of {sum(sizes)} cases."
        )
    if measured:
        worst = max(measured, key=lambda record: float(record["perplexity"]["mean"]))
        lines.append(
            f"The most damaging edit: {name_of(worst)}, perplexity {format_number(worst['perplexity']['mean'])}."
        )
    return lines
