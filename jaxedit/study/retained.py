"""The file retained.json: how the kept edits' facts hold in the last model.

It follows from the journal, so one that cannot be read, is of other edits, of another study, or of
an older state of this one, is made anew.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxedit.files import read_json, write_atomic
from jaxedit.study.chain import digest_bytes, is_sealed, seal, was_changed
from jaxedit.study.journal import Journal
from jaxedit.study.upgrade import upgrade_metrics

FILE = "retained.json"


def read_retained(journal: Journal, older: bool = True) -> list[Mapping[str, Any]] | None:
    """Read the metrics of each kept edit's facts in a study's last model.

    Args:
      journal: as it is now.
      older: whether a file that does not say of which journal it is is taken, as older versions
        wrote it.

    Returns:
      None where there is no such file of this journal, or none that can be read.
    """
    try:
        values = read_json(journal.folder / FILE)
    except (ValueError, OSError):
        return None
    facts, kept = values.get("facts"), journal.kept_numbers
    is_whole = isinstance(facts, list) and len(facts) == len(kept)
    if not is_whole or not all(isinstance(each, Mapping) for each in facts):
        return None
    of_this = older and not was_changed(values)
    if "journal" in values:
        of_this = is_sealed(values) and values["journal"] == _digest_edits(journal)
    if values.get("steps") != kept or not of_this:
        return None
    return [upgrade_metrics(each) for each in facts]


def write_retained(journal: Journal, facts: Sequence[Mapping[str, Any]]) -> None:
    """Write the metrics of each kept edit's facts.

    Args:
      journal: as it is now.
      facts: of each of its kept edits.

    Raises:
      OSError: where they cannot be written; the file is then as it was.
    """
    about = {"journal": _digest_edits(journal), "steps": journal.kept_numbers}
    content = seal({**about, "facts": list(facts)})
    write_atomic(journal.folder / FILE, json.dumps(content, ensure_ascii=False))


def _digest_edits(journal: Journal) -> str:
    """Digest what a study is, which edits it made, and which it kept; not how long they took."""
    # The first of the links: of what the study is, and of lines that an older version wrote.
    begin = next((line.links.previous for line in journal.lines if line.links), "")
    edits = [[step.record.step, step.record.kept, step.digest] for step in journal.steps]
    return digest_bytes(json.dumps([begin, edits]).encode())
