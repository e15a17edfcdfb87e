"""Named arrays in files: safetensors, NumPy's npz, and torch's (its weights only)."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxedit.imports.changes import WeightChange, change_of_array, change_of_factors, check_finite
from jaxedit.torch_files import read_torch

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file, in float32.

    Raises:
      ValueError: where the file is cut short, of another kind, or holds something that is no array
        or not finite.
    """
    if path.suffix == ".safetensors":
        found: Mapping[str, Any] = _read_safetensors(path)
    elif path.suffix == ".npz":
        found = _read_npz(path)
    else:
        found = read_torch(path)
    return {name: _as_array(path, name, value) for name, value in found.items()}


def read_changes_file(path: Path) -> dict[str, WeightChange]:
    """Read a file of {HF weight name: change}.

    A change is a matrix, or, in a torch file, a pair (left, right) as the `deltas` of the ROME and
    MEMIT repositories: of ROME two vectors, left of the weight's inputs and right of its outputs,
    whose outer product is the change; of MEMIT two matrices with one column a fact, left rightᵀ
    (rome/rome_main.py and memit/memit_main.py there).

    Raises:
      ValueError: as `read_arrays`, and where a pair's shapes do not go together.
    """
    if path.suffix not in TORCH_SUFFIXES:
        found: Mapping[str, Any] = read_arrays(path)
    else:
        found = read_torch(path)
    if any(".lora_" in name for name in found):
        raise ValueError(f"{path} holds the factors of a LoRA adapter: give its folder")
    return {name: _change(path, name, value) for name, value in found.items()}


def _change(path: Path, name: str, value: Any) -> WeightChange:
    """Read one entry: a matrix, or a pair of factors."""
    if not isinstance(value, tuple | list):
        return change_of_array(_as_array(path, name, value), order=None)
    if len(value) != 2:
        raise ValueError(
            f"{path}: {name!r} holds {len(value)} things; expected a matrix, or a pair (left, "
            "right) as the ROME and MEMIT repositories' deltas"
        )
    left, right = (_as_array(path, name, each) for each in value)
    if left.ndim == right.ndim == 1:
        left, right = left[:, None], right[:, None]
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(
            f"{path}: the pair of {name!r} has shapes {left.shape} and {right.shape}; expected two "
            "vectors (ROME), or two matrices with as many columns (MEMIT)"
        )
    return change_of_factors(left, right.T, order=None)


def _as_array(path: Path, name: str, value: Any) -> np.ndarray:
    """Turn an array or torch tensor of a file into a float32 array."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OUSMm":
        raise ValueError(f"{path}: {name!r} holds {type(value).__name__}, expected numbers")
    array = value.astype(np.float32)
    check_finite(path, name, array)
    return array


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "edit" in metadata:
                raise ValueError(
                    f"{path} is an edit of jaxedit: jaxedit.Edit.load reads it, and commands take "
                    "it as --edit"
                )
            return {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole .npz file of arrays: {error}") from error
