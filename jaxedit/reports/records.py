"""Journal records as table rows and sentences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxedit.analyses.damage_prediction import COLLAPSE_PPL, has_collapsed
from jaxedit.reports.formatting import format_number, format_perplexity, severity
from jaxedit.study.entry_names import editor_entry, name_entries, name_methods
from jaxedit.study.journal import Journal
from jaxedit.study.record import StepRecord
from jaxedit.study.remarks import journal_remarks

HEADER = ["#", "edit", "perplexity", "ratio", "P(new)", "accuracy", "|u·k|", "outcome"]
NUMBERS = ("#", "perplexity", "ratio", "accuracy", "|u·k|")  # columns that are aligned right


def edit_steps(journal: Journal) -> list[StepRecord]:
    """Return the records of a journal's edits.

    Raises:
      ValueError: where there is none, or one lacks what every edit has.
    """
    if len(journal.steps) < 2:
        raise ValueError(f"{journal.folder} holds no edit yet; run the study first")
    records = [step.record for step in journal.steps[1:]]
    for record in records:
        _check_complete(journal, record)
    return records


def _check_complete(journal: Journal, record: StepRecord) -> None:
    """Check that an edit's record has what is shown of every edit.

    Raises:
      ValueError: where something is missing.
    """
    fields = {name: getattr(record, name) for name in ("prompt", "subject", "target_new")}
    if record.is_made:
        metrics, unedited = record.metrics or {}, record.unedited_metrics or {}
        fields["metrics.probability_new"] = metrics.get("probability_new")
        fields["metrics.efficacy_accuracy"] = metrics.get("efficacy_accuracy")
        fields["unedited_metrics.probability_new"] = unedited.get("probability_new")
    if record.perplexity:
        fields["perplexity.ratio"] = record.perplexity.get("ratio")
    missing = [name for name, value in fields.items() if value is None]
    if missing:
        raise ValueError(
            f"{journal.folder / 'journal.jsonl'}: the line of step {record.step} lacks "
            f"{', '.join(missing)}; restore it from a copy"
        )


def unedited_perplexity(journal: Journal) -> float:
    """Return the unedited model's perplexity, the mean over texts.

    Raises:
      ValueError: where the journal's first line has none.
    """
    perplexity = journal.steps[0].record.perplexity
    if perplexity is None:
        raise ValueError(
            f"{journal.folder / 'journal.jsonl'}: its first line has no perplexity of the unedited "
            "model; restore it from a copy"
        )
    return float(perplexity["mean"])


def measured_steps(steps: list[StepRecord]) -> dict[int, float]:
    """Return step -> perplexity (mean over texts) of the edits after which it was measured."""
    return {each.step: float(each.perplexity["mean"]) for each in steps if each.perplexity}


def is_single(journal: Journal) -> bool:
    """Tell whether a study made each edit on the untouched model."""
    return journal.run["config"]["mode"] == "single"


def outcome(record: StepRecord, single: bool = False) -> str:
    """Say what became of an edit; single edits are neither kept nor rolled back."""
    if record.skipped is not None:
        return "skipped"
    if record.error is not None:
        return "not edited"
    if record.undone_after is not None:
        return "undone"
    if record.guard_code is not None:
        return "kept, damaging" if record.kept else "damaging" if single else "rolled back"
    return "kept" if record.kept else "measured"


def why_not_made(record: StepRecord) -> str | None:
    """Say why an edit was not made: its error, or what the screening predicted; None if it was."""
    if record.skipped is None:
        return record.error
    predicted = record.predicted_perturbation
    known = "" if predicted is None else f": predicted relative perturbation {predicted:.3g}"
    return f"skipped by the {record.skipped}{known}"


def remark(record: StepRecord) -> str | None:
    """Say why an edit was not made or not kept, or that it was undone; None: nothing to say."""
    if record.undone_after is not None:
        why = "" if record.undone_reason is None else f": {record.undone_reason}"
        return f"undone after edit {record.undone_after}{why}"
    return why_not_made(record) or record.guard_reason


def table_row(record: StepRecord, single: bool = False) -> list[str]:
    """Return an edit as the cells of a table under `HEADER`.

    Args:
      record: of the edit.
      single: whether it is one of a study of single edits.
    """
    # What was measured, of an edit that was made.
    cells: dict[str, str] = {}
    if record.is_made:
        assert record.metrics is not None
        assert record.unedited_metrics is not None
        before = float(record.unedited_metrics["probability_new"])
        after = float(record.metrics["probability_new"])
        cells["P(new)"] = f"{before:.3f} → {after:.3f}"
        cells["accuracy"] = f"{float(record.metrics['efficacy_accuracy']):.0%}"
        denominator = (record.optimisation or {}).get("denominator")
        if denominator is not None:
            cells["|u·k|"] = format_number(denominator)
        if record.perplexity:
            cells["perplexity"] = format_perplexity(record.perplexity)
            cells["ratio"] = format_number(record.perplexity["ratio"])

    # What every step has.
    cells["#"] = str(record.step)
    cells["edit"] = record.request_summary
    cells["outcome"] = outcome(record, single)
    return [cells.get(name, "") for name in HEADER]


def phase_times(steps: list[StepRecord]) -> dict[str, float]:
    """Sum the seconds of each phase over all edits."""
    total_s: dict[str, float] = {}
    for record in steps:
        for phase, time_s in (record.time_s or {}).items():
            total_s[phase] = total_s.get(phase, 0.0) + time_s
    return total_s


def retention_table(
    journal: Journal, entry: str = "probability_new"
) -> tuple[list[int], list[int], np.ndarray]:
    """Collect what a journal knows of retention.

    Args:
      journal: of a study with `eval.retention_every`.
      entry: which of the metrics that are measured again.

    Returns:
      The steps of the edits that were kept, also if undone since, the steps after which they were
      evaluated, and the entry by edit and evaluation, NaN where an edit came later or was undone.
    """
    records = [step.record for step in journal.steps[1:]]
    evaluations = [record for record in records if record.retention is not None]
    edits = [record.step for record in records if record.was_kept]
    values = np.full((len(edits), len(evaluations)), np.nan)
    for column, record in enumerate(evaluations):
        for row, edit in enumerate(edits):
            held = (record.retention or {}).get(str(edit), {}).get(entry)
            values[row, column] = np.nan if held is None else float(held)
    return edits, [record.step for record in evaluations], values


def _chosen_alternatives(config: Mapping[str, Any], made: list[StepRecord]) -> str:
    """Say how many edits each alternative made, and of how many facts none was said."""
    names = name_entries([config["editor"], *config["alternatives"]])
    numbers = [record.optimisation or {} for record in made]
    chosen = [int(each["alternative"]) for each in numbers]
    counts = [f"{chosen.count(index)} by {name}" for index, name in enumerate(names)]
    n_unsaid = sum(each["alternatives_said"] == 0 for each in numbers)
    unsaid = f" Facts that the model said with none of them: {n_unsaid}." if n_unsaid else ""
    return f"Edits made: {'; '.join(counts)}.{unsaid}"


def summary(journal: Journal, steps: list[StepRecord]) -> list[str]:
    """Summarise a study in a few sentences."""
    # How many edits were made, and what became of them and of the others.
    config = journal.run["config"]
    made = [record for record in steps if record.is_made]
    kept = [record for record in made if record.kept]
    rolled_back = [r for r in made if outcome(r, is_single(journal)) == "rolled back"]
    undone = [record for record in made if record.undone_after is not None]
    n_skipped = sum(record.skipped is not None for record in steps)
    n_failed = len(steps) - len(made) - n_skipped
    counts = (
        f"{len(made)} edits made, {len(kept)} kept, {len(rolled_back)} rolled back, "
        f"{n_failed} not possible"
    )
    counts += f", {n_skipped} skipped by the screening" if n_skipped else ""
    counts += f", {len(undone)} undone" if undone else ""
    methods = name_methods(editor_entry(config))

    # What they did to the perplexity.
    perplexities = measured_steps(made)
    unedited = unedited_perplexity(journal)
    n_collapsed = sum(has_collapsed(each, unedited) for each in perplexities.values())
    collapse = f"{n_collapsed} of the edits took it over {COLLAPSE_PPL:,} (collapse)."
    if unedited > COLLAPSE_PPL:
        collapse = f"that is over {COLLAPSE_PPL:,} (collapse) without any edit."
    lines = [
        *journal_remarks(journal),
        f"{methods} on {config['model']}, {config['mode']} edits: {counts}.",
        f"The unedited model's perplexity is {format_number(unedited)}; {collapse}",
    ]
    if config.get("alternatives"):
        lines.insert(-1, _chosen_alternatives(config, made))
    last = [record.step for record in kept if record.step in perplexities][-1:]
    if last:
        had_others = any(record.was_in_model_at(last[0]) for record in undone)
        ppl = next(format_perplexity(r.perplexity or {}) for r in kept if r.step == last[0])
        lines.append(f"After the last kept edit it {'was' if had_others else 'is'} {ppl}.")
    lines += [
        f"Edit {record.step} was undone after edit {record.undone_after}: what was measured after "
        f"edits {record.step} to {record.undone_after} was measured with it in the model."
        for record in undone
    ]

    # Efficacy, and the worst edit.
    if made:
        sizes = [record.n_requests or 1 for record in made]
        shares = [float((record.metrics or {})["efficacy_accuracy"]) for record in made]
        n_said = sum(share * size for share, size in zip(shares, sizes, strict=True))
        lines.append(
            f"Right after its edit greedy decoding says the new fact in {n_said:.0f} of "
            f"{sum(sizes)} cases (accuracy)."
        )
    if perplexities:
        measured = [record for record in made if record.perplexity]
        worst = max(measured, key=lambda record: severity(record.perplexity or {}))
        lines.append(
            f"The most damaging edit: {worst.request_summary}, perplexity "
            f"{format_perplexity(worst.perplexity or {})}."
        )
    return lines
