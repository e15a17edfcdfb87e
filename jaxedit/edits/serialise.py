"""Edits as .safetensors files, and back bit for bit.

Arrays are named "INDEX/FIELD" for the fields of each delta and "memory/NAME" for the editor's
memory; one entry of metadata, "edit", holds the rest as JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxedit.edits.edit import Dense, Edit, LowRank

ARRAYS = {"LowRank": ("u_FR", "v_RD"), "Dense": ("delta_FD",)}  # kind of delta -> its arrays


def edit_to_arrays(edit: Edit) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Take an edit apart into named arrays and the metadata that says what they are."""
    arrays: dict[str, np.ndarray] = {f"memory/{name}": array for name, array in edit.memory.items()}
    deltas = []
    for i, delta in enumerate(edit.deltas):
        kind = type(delta).__name__
        deltas.append({"kind": kind, "weight": delta.weight, "layer": delta.layer})
        for field in ARRAYS[kind]:
            arrays[f"{i}/{field}"] = getattr(delta, field)
    described: dict[str, Any] = {"deltas": deltas, "hf_layout": dict(edit.hf_layout)}
    if edit.anchor:
        described["anchor"] = edit.anchor
    # One entry: safetensors writes several in an order of chance, and a step's file should be the
    # same bits each time.
    return arrays, {"edit": json.dumps(described)}


def to_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Serialise arrays and metadata to the content of a .safetensors file."""
    # safetensors writes an array's memory as it lies, so one in Fortran's order would come back
    # scrambled.
    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(in_order, dict(metadata))


def read_edit(path: Path) -> Edit:
    """Read an edit from a step's file, bit for bit.

    Raises:
      ValueError: where the file is cut short or holds no edit.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if "edit" not in metadata:
        raise ValueError(f"{path} holds no edit")

    described = json.loads(metadata["edit"])
    deltas: list[LowRank | Dense] = []
    for i, entry in enumerate(described["deltas"]):
        kind = LowRank if entry["kind"] == "LowRank" else Dense
        fields = {field: arrays[f"{i}/{field}"] for field in ARRAYS[entry["kind"]]}
        deltas.append(kind(entry["weight"], entry["layer"], **fields))
    memory = {
        name.removeprefix("memory/"): array
        for name, array in arrays.items()
        if name.startswith("memory/")
    }
    layout = {weight: tuple(pair) for weight, pair in described["hf_layout"].items()}
    return Edit(tuple(deltas), memory, layout, described.get("anchor"))
