"""An edit as a .safetensors file, and back bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxedit.edits.edit import Dense, Edit, LowRank


def edit_to_arrays(edit: Edit) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """An edit as named arrays and the text that says what they are."""
    arrays: dict[str, np.ndarray] = {f"memory/{name}": array for name, array in edit.memory.items()}
    described = []
    for i, delta in enumerate(edit.deltas):
        described.append(
            {"kind": type(delta).__name__, "weight": delta.weight, "layer": delta.layer}
        )
        arrays |= {f"{i}/{field}": getattr(delta, field) for field in delta._fields[2:]}
    # One entry: safetensors writes several in an order of chance, and a step's file should be the
    # same bits each time.
    anchor = {"anchor": edit.anchor} if edit.anchor else {}
    return arrays, {
        "edit": json.dumps({"deltas": described, "hf_layout": dict(edit.hf_layout), **anchor})
    }


def to_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Arrays and metadata as the content of a .safetensors file."""
    # safetensors writes an array's memory as it lies, so one in Fortran's order would come back
    # scrambled.
    return save(
        {name: np.asarray(array, order="C") for name, array in arrays.items()}, dict(metadata)
    )


def read_edit(path: Path) -> Edit:
    """An edit from a step's file, bit for bit.

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
    kinds = {"LowRank": LowRank, "Dense": Dense}
    deltas = []
    for i, entry in enumerate(described["deltas"]):
        kind = kinds[entry["kind"]]
        deltas.append(
            kind(
                entry["weight"],
                entry["layer"],
                *(arrays[f"{i}/{field}"] for field in kind._fields[2:]),
            )
        )
    memory = {
        name.removeprefix("memory/"): array
        for name, array in arrays.items()
        if name.startswith("memory/")
    }
    layout = {weight: tuple(pair) for weight, pair in described["hf_layout"].items()}
    return Edit(tuple(deltas), memory, layout, described.get("anchor"))
