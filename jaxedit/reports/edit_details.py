"""Everything that a study's folder knows of one edit."""

from typing import Any

import numpy as np

from jaxedit.edits.edit import LowRank, delta_norm, to_dense
from jaxedit.files import flatten_keys
from jaxedit.reports.formatting import format_number
from jaxedit.reports.records import is_single, outcome, remark
from jaxedit.study.journal import Journal, find_step


def edit_details(journal: Journal, number: int) -> dict[str, Any]:
    """Collect what is known of an edit: its outcome, its journalled record, and its change.

    Args:
      journal: the study's.
      number: the edit's step.

    Returns:
      "outcome", "remark" (why), "record", and of what the step's file holds "changes" (weight,
      layer, rank, shape and Frobenius norm of each) and "memory", the shapes of what the editor's
      state learnt. A snapshot's changes are those of all edits up to this one.

    Raises:
      ValueError: where the edit is not there, or its file is damaged.
    """
    step = find_step(journal, number)
    record = step.record
    details: dict[str, Any] = {
        "outcome": outcome(record, is_single(journal)),
        "remark": remark(record),
        "record": record.to_dict(),
    }
    if not (record.is_made or record.snapshot):
        return details
    edit = step.read_edit()
    details["changes"] = []
    for delta in edit.deltas:
        delta_FD = to_dense(delta)
        details["changes"].append(
            {
                "weight": delta.weight,
                "layer": delta.layer,
                "rank": delta.u_FR.shape[1] if isinstance(delta, LowRank) else None,
                "shape": list(delta_FD.shape),
                "norm": delta_norm(delta),
            }
        )
    details["memory"] = {name: list(np.shape(array)) for name, array in edit.memory.items()}
    return details


def detail_rows(details: dict[str, Any]) -> list[list[str]]:
    """Return an edit's details as rows of a table: what, and its value."""
    rows = [["outcome", details["outcome"]]]
    if details["remark"]:
        rows.append(["remark", details["remark"]])
    for name, value in flatten_keys(details["record"]).items():
        if value is not None and name != "kind":
            rows.append([name, format_number(value) if isinstance(value, float) else str(value)])
    for change in details.get("changes", ()):
        kind = "whole matrix" if change["rank"] is None else f"rank {change['rank']}"
        shape = " x ".join(map(str, change["shape"]))
        what = f"{kind}, {shape}, Frobenius norm {format_number(change['norm'])}"
        rows.append([f"change of {change['weight']}, layer {change['layer']}", what])
    for name, shape in details.get("memory", {}).items():
        rows.append([f"learnt: {name}", " x ".join(map(str, shape)) or "a number"])
    return rows
