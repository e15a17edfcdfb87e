"""Journal records as table rows and sentences."""

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL
from jaxedit.reports.formatting import format_number
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord

HEADER = ["#", "edit", "perplexity", "ratio", "P(new)", "says it", "|u·k|", "outcome"]
NUMBERS = ("#", "perplexity", "ratio", "|u·k|")


def edit_steps(journal: Journal) -> list[StepRecord]:
    """Returns the records of a journal's edits.

    Raises:
      ValueError: where there is none.
    """
    if len(journal.steps) < 2:
        raise ValueError(f"{journal.folder} holds no edit yet; run the study first")
    return [step.record for step in journal.steps[1:]]


def unedited_perplexity(journal: Journal) -> float:
    """Returns the unedited model's perplexity, the mean over texts."""
    perplexity = journal.steps[0].record.perplexity
    assert perplexity is not None
    return float(perplexity["mean"])


def measured_steps(steps: list[StepRecord]) -> dict[int, float]:
    """Returns step -> perplexity (mean over texts) of the edits after which it was measured."""
    return {each.step: float(each.perplexity["mean"]) for each in steps if each.perplexity}


def is_single(journal: Journal) -> bool:
    """Tells whether a study made each edit on the untouched model."""
    return journal.run["config"]["mode"] == "single"


def outcome(record: StepRecord, single: bool = False) -> str:
    """Says what became of an edit; single edits are neither kept nor rolled back."""
    if record.skipped is not None:
        return "skipped"
    if record.error is not None:
        return "not edited"
    if record.guard_code is not None:
        return "kept, damaging" if record.kept else "damaging" if single else "rolled back"
    return "kept" if record.kept else "measured"


def table_row(record: StepRecord, single: bool = False) -> list[str]:
    """Returns an edit as the cells of a table under `HEADER`."""
    name = record.request_summary
    if not record.is_made:
        return [str(record.step), name, "", "", "", "", "", outcome(record)]
    assert record.metrics is not None
    assert record.unedited_metrics is not None
    before, after = (
        float(metrics["probability_new"]) for metrics in (record.unedited_metrics, record.metrics)
    )
    says = record.metrics["efficacy_accuracy"]
    several = (record.n_requests or 1) > 1
    denominator = (record.optimisation or {}).get("denominator")
    perplexity = record.perplexity
    return [
        str(record.step),
        name,
        format_number(perplexity["mean"]) if perplexity else "",
        format_number(perplexity["ratio"]) if perplexity else "",
        f"{before:.3f} → {after:.3f}",
        f"{says:.0%}" if several else "yes" if says else "no",
        "" if denominator is None else format_number(denominator),
        outcome(record, single),
    ]


def phase_times(steps: list[StepRecord]) -> dict[str, float]:
    """Sums the seconds of each phase over all edits."""
    total_s: dict[str, float] = {}
    for record in steps:
        for phase, time_s in (record.time_s or {}).items():
            total_s[phase] = total_s.get(phase, 0.0) + time_s
    return total_s


def retention_table(
    journal: Journal, entry: str = "probability_new"
) -> tuple[list[int], list[int], np.ndarray]:
    """Collects what a journal knows of retention.

    Args:
      journal: of a study with `eval.retention_every`.
      entry: which of the metrics that are measured again.

    Returns:
      The steps of the kept edits, the steps after which they were evaluated, and the entry by
      edit and evaluation, NaN where an edit came later.
    """
    records = [step.record for step in journal.steps[1:]]
    evaluations = [record for record in records if record.retention is not None]
    edits = [record.step for record in records if record.kept]
    values = np.full((len(edits), len(evaluations)), np.nan)
    for column, record in enumerate(evaluations):
        for row, edit in enumerate(edits):
            held = (record.retention or {}).get(str(edit), {}).get(entry)
            values[row, column] = np.nan if held is None else float(held)
    return edits, [record.step for record in evaluations], values


def summary(journal: Journal, steps: list[StepRecord]) -> list[str]:
    """Sums a study up in a few sentences."""
    config = journal.run["config"]
    made = [record for record in steps if record.is_made]
    kept = [record for record in made if record.kept]
    rolled_back = [] if is_single(journal) else [r for r in made if r.guard_code and not r.kept]
    skipped = [record for record in steps if record.skipped is not None]
    perplexities = measured_steps(made)
    collapsed = [step for step, perplexity in perplexities.items() if perplexity > COLLAPSE_PPL]
    counts = (
        f"{len(made)} edits made, {len(kept)} kept, {len(rolled_back)} rolled back, "
        f"{len(steps) - len(made) - len(skipped)} not possible"
    )
    counts += f", {len(skipped)} skipped by the screening" if skipped else ""
    lines = [
        f"{config['editor']['method']} on {config['model']}, {config['mode']} edits: {counts}.",
        f"The unedited model's perplexity is {format_number(unedited_perplexity(journal))}; "
        f"{len(collapsed)} of the edits took it over {COLLAPSE_PPL:,} (collapse).",
    ]
    last = [record.step for record in kept if record.step in perplexities][-1:]
    if last:
        lines.append(f"After the last kept edit it is {format_number(perplexities[last[0]])}.")
    if made:
        sizes = [record.n_requests or 1 for record in made]
        shares = [float((record.metrics or {})["efficacy_accuracy"]) for record in made]
        says = sum(share * size for share, size in zip(shares, sizes, strict=True))
        lines.append(
            f"Right after its edit the model says the new fact in {says:.0f} of {sum(sizes)} cases."
        )
    if perplexities:
        worst = max((r for r in made if r.perplexity), key=lambda r: perplexities[r.step])
        lines.append(
            f"The most damaging edit: {worst.request_summary}, perplexity "
            f"{format_number(perplexities[worst.step])}."
        )
    return lines
