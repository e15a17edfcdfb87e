"""Files on disk and on the web: written whole or not at all, JSON of numbers that are not finite,
downloads kept in a cache.
"""

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


def to_json(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are not finite become strings that `float` reads."""
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
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten_keys(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that it is on the disk whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = partial_path(path)
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def partial_path(path: Path) -> Path:
    """Where a file is written before it is whole; never the file itself, whatever its suffix."""
    return path.with_name(f"{path.name}.part")


WAIT_S = 60


def is_url(source: str) -> bool:
    """Whether a source is an address on the web."""
    return source.startswith(("https://", "http://"))


def download(address: str) -> Path:
    """The file at an address, which is fetched once and then kept in the user's cache folder.

    Raises:
      ValueError: where it cannot be fetched; the message says why and where a copy may be put.
    """
    name = Path(urllib.parse.urlsplit(address).path).name or "file"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = (
        home / "jaxedit" / "files" / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"
    )
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(address, timeout=WAIT_S) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ValueError(
            f"{address} could not be fetched ({error}); fetch it by other means and give the file's path"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)  # whole or not there, also with several processes
    return path
