"""Finished studies as a comparison reads them."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.reports.records import edit_steps, measured_steps, unedited_perplexity
from jaxedit.study.journal import Journal, read_journal
from jaxedit.study.journal_end import FILE
from jaxedit.study.record import StepRecord
from jaxedit.study.retained import read_retained


class FinishedStudy(NamedTuple):
    """A finished study.

    Attributes:
      name: its variant's.
      journal: read.
      retained: the metrics of each kept edit's facts in the last model; none of single edits, and
        of a study whose edits were undone since it ran.
    """

    name: str
    journal: Journal
    retained: Sequence[Mapping[str, Any]]

    @property
    def unedited(self) -> float:
        """The unedited model's perplexity."""
        return unedited_perplexity(self.journal)

    @property
    def made(self) -> list[StepRecord]:
        """The records of the edits that were made."""
        return [record for record in edit_steps(self.journal) if record.is_made]

    @property
    def perplexities(self) -> dict[int, float]:
        """Facts written -> perplexity, where it was measured."""
        facts_after = self.facts_after
        return {facts_after[step]: found for step, found in measured_steps(self.made).items()}

    @property
    def facts_after(self) -> dict[int, int]:
        """Step -> how many facts are written by then: the step itself, where each writes one."""
        steps = edit_steps(self.journal)
        sizes = [record.n_requests or 1 for record in steps]
        if all(size == 1 for size in sizes):
            return {record.step: record.step for record in steps}
        return dict(
            zip((record.step for record in steps), itertools.accumulate(sizes), strict=True)
        )


def study_folders(folder: Path) -> list[Path]:
    """List the studies of a folder by their names: those in it, or else the folder itself."""
    if (folder / FILE).exists():
        return [folder]
    return sorted(place.parent for place in folder.glob(f"*/{FILE}")) or [folder]


def read_studies(folder: Path, variants: tuple[str, ...]) -> list[FinishedStudy]:
    """Read the finished studies in a folder, in the order of the variants."""
    studies = []
    for name in variants:
        journal = read_journal(folder / name)
        retained = read_retained(journal) or []
        studies.append(FinishedStudy(name, journal, retained))
    return studies
