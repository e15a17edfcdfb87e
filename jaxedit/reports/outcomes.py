"""Finished studies as a comparison reads them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.reports.records import edit_steps
from jaxedit.study.journal import Journal, read_journal


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
    """The finished studies in a folder, in the order of the variants; single edits are not
    retained.
    """
    outcomes = []
    for name in variants:
        path = folder / name / "retained.json"
        held = json.loads(path.read_text(encoding="utf-8"))["facts"] if path.is_file() else []
        outcomes.append(Outcome(name, read_journal(folder / name), held))
    return outcomes
