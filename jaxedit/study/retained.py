"""The file retained.json: how the kept edits' facts hold in the last model.

It follows from the journal, so one that cannot be read, or is of other edits, is made anew.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxedit.files import read_json, write_atomic
from jaxedit.study.chain import seal, was_changed
from jaxedit.study.upgrade import upgrade_metrics

FILE = "retained.json"


def read_retained(
    folder: Path, kept: Sequence[int], unsealed: bool = True
) -> list[Mapping[str, Any]] | None:
    """Read the metrics of each kept edit's facts in a study's last model.

    Args:
      folder: the work directory.
      kept: the steps whose edits the model has.
      unsealed: whether a file without a digest is taken, as older versions wrote it.

    Returns:
      None where there is no such file of these edits, or none that can be read.
    """
    try:
        values = read_json(folder / FILE)
    except (ValueError, OSError):
        return None
    if was_changed(values):
        return None
    facts = values.get("facts")
    is_whole = isinstance(facts, list) and len(facts) == len(kept)
    if not is_whole or not all(isinstance(each, Mapping) for each in facts):
        return None
    if values.get("steps") != list(kept) or not (unsealed or "digest" in values):
        return None
    return [upgrade_metrics(each) for each in facts]


def write_retained(folder: Path, kept: Sequence[int], facts: Sequence[Mapping[str, Any]]) -> None:
    """Write the metrics of each kept edit's facts.

    Raises:
      OSError: where they cannot be written; the file is then as it was.
    """
    content = seal({"steps": list(kept), "facts": list(facts)})
    write_atomic(folder / FILE, json.dumps(content, ensure_ascii=False))
