"""A study's journal as a table of comma-separated values, for spreadsheets and pandas.

One row a step, the unedited model's first (`kind` is "baseline", `step` 0). The columns are the
fields of `jaxedit.study.record.StepRecord`; what lies within a field has its keys behind it with
dots between them, e.g. `perplexity.mean`, `retention.3.probability_new`, `prompt_continuations.0`.
Numbers have all their digits, those that are not finite are inf and nan; the cell of what was not
measured is empty.
"""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

from jaxedit.files import flatten_keys, write_atomic
from jaxedit.study.journal import read_journal
from jaxedit.study.record import StepRecord


def write_csv(workdir: Path) -> Path:
    """Write a study's journal as `report.csv` to its folder; return the file.

    Raises:
      ValueError: where the folder is not a study's.
      OSError: where it cannot be written.
    """
    rows = [flat_record(step.record) for step in read_journal(workdir).steps]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = workdir / "report.csv"
    write_atomic(path, text.getvalue().encode())
    return path


def flat_record(record: StepRecord) -> dict[str, Any]:
    """Return the fields of a record that are not None, those that hold several values as several.

    Returns:
      Dotted name -> number, text, truth value, or None.
    """
    return flatten_keys(_lists_as_mappings(record.to_dict()))


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """Order the names of all rows: by field as in a record, within a field as they appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    fields = [field.name for field in dataclasses.fields(StepRecord)]
    return sorted(names, key=lambda name: fields.index(name.partition(".")[0]))


def _lists_as_mappings(value: Any) -> Any:
    """Replace lists, at any depth, by dictionaries of their items by position."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {key: _lists_as_mappings(inner) for key, inner in value.items()}
    return value
