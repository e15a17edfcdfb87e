"""A study's folder for each process of a run.

The processes of a run make the same steps, and the first one's folder is the study's. Each other process keeps a folder of
its own that begins as a copy, so that it goes on from the same step, wherever it runs: no file system need be shared.
"""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np


def own_folder(folder: Path) -> Path:
    """The folder itself in the first process (or the only one); in the others a temporary one with the same files."""
    if jax.process_count() == 1:
        return folder
    is_first = jax.process_index() == 0
    mine = folder if is_first else Path(tempfile.mkdtemp(prefix="jaxedit-"))
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if is_first and folder.is_dir() else []
    listing = json.dumps([[str(path.relative_to(folder)), path.stat().st_size] for path in files]).encode()
    names = json.loads(_told(listing, _told_number(len(listing))))
    for i, (name, n_bytes) in enumerate(names):
        content = _told(files[i].read_bytes() if is_first else b"", n_bytes)
        if not is_first:
            (mine / name).parent.mkdir(parents=True, exist_ok=True)
            (mine / name).write_bytes(content)
    return mine


def _told(content: bytes, n_bytes: int) -> bytes:
    """The first process's bytes, whose number all know."""
    from jax.experimental import multihost_utils

    mine = np.frombuffer(content, np.uint8) if jax.process_index() == 0 else np.zeros(n_bytes, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8).tobytes()


def _told_number(number: int) -> int:
    """The first process's number."""
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
