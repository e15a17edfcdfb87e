"""What whoever reads a study has to know of its journal: what it lacks, what cannot be verified."""

from jaxedit.study.guard import ends_study
from jaxedit.study.journal import Journal
from jaxedit.study.journal_end import count_lost, read_mark
from jaxedit.study.journal_lines import undone_by
from jaxedit.study.record import StepRecord
from jaxedit.study.run_file import read_run_file

MOST_NAMED = 3  # edits whose facts contradict each other


def journal_remarks(journal: Journal) -> list[str]:
    """Say that a study is unfinished, has lost lines, and which of them cannot be verified.

    How many edits a shard has is not known from its run.json.
    """
    remarks = []
    n_lost = count_lost(read_mark(journal.folder), len(journal.lines), undone_by(journal.lines))
    if n_lost:
        remarks.append(
            f"The journal has lost its last lines, {n_lost} of {len(journal.lines) + n_lost}: what "
            "they said of edits is not shown. A study that goes on makes these edits again."
        )
    unverified = read_run_file(journal.folder).get("unverified_steps")
    if unverified:
        remarks.append(
            f"{len(unverified)} edits were merged from shards that an older version wrote without "
            "digests: damage to them before the merge could not be noticed."
        )
    if journal.n_unverified:
        remarks.append(
            f"The first {journal.n_unverified} lines of the journal were written by an older "
            "version: they have no digests, so that damage to them cannot be noticed."
        )
    config, n_made = journal.run["config"], len(journal.steps) - 1
    n_edits = journal.run.get("n_edits")
    last = journal.steps[-1].record if journal.steps else StepRecord(step=0)
    is_stopped = ends_study(config.get("guard", {}).get("action"), last)
    contradicting = [step.record for step in journal.steps if step.record.contradictions]
    if contradicting:
        records = contradicting[:MOST_NAMED]
        named = "; ".join(text for record in records for text in record.contradictions or ())
        remarks.append(
            f"Facts of one edit contradict each other in {len(contradicting)} edits, first in "
            f"edit {contradicting[0].step}: {named}"
        )
    is_whole = n_edits is None or n_made >= n_edits or is_stopped or config.get("shard")
    if not is_whole:
        remarks.append(
            f"The study is not finished: {n_made} of {n_edits} edits. The command that began it "
            "goes on with it."
        )
    behind = [number for number in journal.kept_numbers if number > journal.last_snapshot]
    if config.get("journal_dense_every", 1) > 1 and behind:
        remarks.append(
            f"The journal's last weights are those after edit {journal.last_snapshot}: the model "
            f"lacks what was kept since, {len(behind)} of its edits. The command that began the "
            "study makes them again."
        )
    return remarks


def undone_remarks(journal: Journal, record: StepRecord) -> list[str]:
    """Say that edits, which were undone since, were in the model that a step measured."""
    steps = [step.record for step in journal.steps]
    gone = [each.step for each in steps if each.was_in_model_at(record.step)]
    if not gone:
        return []
    return [
        f"edits undone since are left out of the model after edit {record.step}, which had them "
        f"when it was measured: {', '.join(map(str, gone))}"
    ]
