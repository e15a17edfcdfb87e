"""The .npz files of second moments that the ROME, MEMIT and EasyEdit repositories publish and read.

One file a layer, named like transformer.h.17.mlp.c_proj_float32_mom2_100000.npz, the state of a
running sum:

    mom2.mom2     the sum of k k^T (not the mean) [F, F]
    mom2.count    the number of tokens
    sample_size   the number of texts
"""

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

LAYER = re.compile(r"\.(\d+)\.")
NEEDED = ("mom2.mom2", "mom2.count")
# What NumPy raises on a file that is cut short, damaged, or of another kind.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)


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
        # A lone array, as in .npy, cannot be entered: TypeError or AttributeError.
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files if name in NEEDED}
            names = list(file.files)
    except DAMAGED as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole .npz file: {error}"
        ) from error
    if set(held) != set(NEEDED):
        raise ValueError(f"{path} holds {names}, expected {' and '.join(NEEDED)}")
    total, count = held["mom2.mom2"], int(held["mom2.count"])
    is_square = total.ndim == 2 and total.shape[0] == total.shape[1]
    if not is_square or count < 1:
        raise ValueError(
            f"{path}: mom2.mom2 has shape {total.shape} and mom2.count is {count}; "
            "expected [F, F] and a token count"
        )
    return (total.astype(np.float64) / count).astype(np.float32), count


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
    folder.mkdir(parents=True, exist_ok=True)
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
        np.savez(path, **state)
        written.append(path)
    return written
