"""Files on disk and on the web: atomic writes, JSON of non-finite numbers, arrays, downloads."""

import hashlib
import math
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

DOWNLOAD_TIMEOUT_S = 60


def to_json(value: Any) -> Any:
    """Convert a value to what JSON can hold.

    Arrays become lists. Numbers that are not finite become strings that `float` reads ("inf").
    """
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def flatten_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Serialise arrays and metadata to the content of a .safetensors file."""
    # safetensors writes an array's memory as it lies, so one in Fortran's order would come back
    # scrambled.
    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(in_order, dict(metadata))


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is on the disk whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def partial_path(path: Path) -> Path:
    """Return where a file is written before it is whole: its name with ".part" behind."""
    return path.with_name(f"{path.name}.part")


def cache_folder() -> Path:
    """Return the folder of what is kept between runs: in $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxedit"


def is_url(source: str) -> bool:
    """Return whether a source is an address on the web."""
    return source.startswith(("https://", "http://"))


def download(address: str) -> Path:
    """Fetch the file at an address once, into the user's cache folder, and return its path there.

    Raises:
      ValueError: where it cannot be fetched; the message says why and where a copy may be put.
    """
    name = Path(urllib.parse.urlsplit(address).path).name or "file"
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    path = cache_folder() / "files" / f"{digest}-{name}"
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT_S) as response:
            content = response.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ValueError(
            f"{address} could not be fetched ({error}); "
            "fetch it by other means and give the file's path"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each process: several may fetch the same file at once.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)
    return path
