"""Digests by which a study tells whether its facts, and the edits it began with, are the same."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxedit.edits.edit import Edit, edit_to_arrays
from jaxedit.edits.request import Request


def digest_requests(requests: list[Request]) -> str:
    """Digest facts, so that a study can tell whether its own are the same still."""
    # A field that most facts lack is left out where it is empty, as in journals before it.
    fields = [dict(request.__dict__) for request in requests]
    for each in fields:
        if each["leading_space"] is None:
            del each["leading_space"]
    return digest(fields)


def digest_edits(edits: Sequence[Edit]) -> str | None:
    """Digest the edits that a study's model has from the start; None where it has none."""
    if not edits:
        return None
    found = hashlib.sha256()
    for edit in edits:
        arrays, _ = edit_to_arrays(edit)
        found.update(str([(delta.weight, delta.layer) for delta in edit.deltas]).encode())
        for name in sorted(arrays):
            found.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def digest(value: Any) -> str:
    """Digest what JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
