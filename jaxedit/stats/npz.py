"""The .npz files of second moments that the ROME, MEMIT and EasyEdit repositories publish and read.

One file a layer, named like transformer.h.17.mlp.c_proj_float32_mom2_100000.npz, the state of a
running sum:

    mom2.mom2     the sum of k k^T (not the mean) [F, F]
    mom2.count    the number of tokens
    sample_size   the number of texts
"""

import io
import re
import zipfile
from pathlib import Path

import numpy as np

from jaxedit.files import write_atomic
from jaxedit.npy import parse_npy

LAYER = re.compile(r"\.([0-9]{1,6})\.")
NEEDED = ("mom2.mom2", "mom2.count")
# A compressed member may be so many times as large as it lies there; a second moment gains little,
# while zeros would fill the memory out of a small file.
MOST_TIMES, SMALL_BYTES = 100, 1 << 26


def read_npz(path: Path, layer: int | None = None) -> tuple[dict[int, np.ndarray], int]:
    """Read second moments from an .npz file, or from all such files of a directory.

    Args:
      path: the file or directory.
      layer: of one file; absent: as its name tells.

    Returns:
      Layer -> E[k k^T] float32 [F, F], and the number of tokens (the least of the files).

    Raises:
      ValueError: where there is none, a name has no layer, or the content is another; the message
        says what was found.
    """
    # A layer that is given is for a file whose name does not tell it.
    paths = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not paths or not paths[0].is_file():
        raise ValueError(f"there is no .npz file at {path}")
    if layer is not None:
        if len(paths) > 1:
            raise ValueError(
                f"layer={layer} is for one file; "
                f"{path} holds {len(paths)} .npz files, whose names tell theirs"
            )
        cov_FF, count = _read_one(paths[0])
        return {layer: cov_FF}, count

    # One file a layer, whose name tells which.
    moments, counts = {}, []
    for each in paths:
        named = LAYER.search(each.name)
        if named is None:
            raise ValueError(
                f"{each.name}: the name tells no layer; "
                "expected one like transformer.h.17.mlp.c_proj_...npz, or give layer="
            )
        if int(named[1]) in moments:
            raise ValueError(
                f"{path} holds two files for layer {named[1]}, one of them {each.name}; "
                "give one file or part them"
            )
        moments[int(named[1])], count = _read_one(each)
        counts.append(count)
    return moments, min(counts)


def _read_one(path: Path) -> tuple[np.ndarray, int]:
    """Read the second moments of one file, and the tokens they are averages over."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            held = {
                name: _read_member(archive, f"{name}.npy", path)
                for name in NEEDED
                if f"{name}.npy" in archive.namelist()
            }
    except Exception as error:  # of zipfile, zlib and others, on what is cut short or damaged
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole .npz file: "
            f"{str(error) or type(error).__name__}"
        ) from error
    if set(held) != set(NEEDED):
        raise ValueError(f"{path} holds {names}, expected {' and '.join(NEEDED)}")
    total, count = held["mom2.mom2"], held["mom2.count"]
    is_square = total.ndim == 2 and total.shape[0] == total.shape[1]
    is_count = count.shape == () and np.isfinite(count) and count >= 1 and count == int(count)
    if not is_square or not is_count:
        raise ValueError(
            f"{path}: mom2.mom2 has shape {total.shape} and mom2.count is {count}; "
            "expected [F, F] and a token count"
        )
    return (total.astype(np.float64) / int(count)).astype(np.float32), int(count)


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """Read an array of an archive, once its size is one that can be meant."""
    info = archive.getinfo(name)
    most = max(SMALL_BYTES, MOST_TIMES * info.compress_size)
    if info.file_size > most or info.compress_size > path.stat().st_size:
        raise ValueError(
            f"{name} would be {info.file_size:,} bytes out of {info.compress_size:,}, which no "
            "second moment is"
        )
    with archive.open(info) as file:
        array = parse_npy(file, info.file_size, name)
        file.read(1)  # at the end, where its checksum is compared
    return array


def write_npz(
    folder: Path, moments: dict[int, np.ndarray], n_tokens: int, module: str, n_texts: int = 100000
) -> list[Path]:
    """Write one file a layer in the form those repositories read; return their paths.

    Args:
      folder: where to; made if need be.
      moments: layer -> E[k k^T] [F, F].
      n_tokens: what they are averages over.
      module: the HF name of the second MLP layer with {} for the layer, e.g.
        "transformer.h.{}.mlp.c_proj".
      n_texts: the number that name and file carry; those repositories read only files with their
        own `mom2_n_samples`.
    """
    written = []
    for layer, cov_FF in moments.items():
        path = folder / f"{module.format(layer)}_float32_mom2_{n_texts}.npz"
        state = {
            "mom2.constructor": np.array("util.runningstats.SecondMoment()"),
            "mom2.count": np.array(n_tokens),
            "mom2.mom2": (np.asarray(cov_FF, np.float64) * n_tokens).astype(np.float32),
            "constructor": np.array("util.runningstats.CombinedStat()"),
            "sample_size": np.array(n_texts),
        }
        content = io.BytesIO()
        np.savez(content, **state)
        write_atomic(path, content.getvalue())
        written.append(path)
    return written
