"""Arrays in NumPy's .npy form that came from outside.

A header is believed only as far as the bytes that follow it go: one that claims a terabyte is an
error before anything is allocated.
"""

import math
from pathlib import Path
from typing import IO

import numpy as np

from jaxedit.messages import first_line

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def parse_npy(file: IO[bytes], n_bytes: int, source: object) -> np.ndarray:
    """Read an array of real numbers.

    Args:
      file: at the array's beginning.
      n_bytes: the size of all that is there of it, header included.
      source: what an error names.

    Raises:
      ValueError: where it is no array of numbers, or its header claims another size than there is.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"version {version} of the form is not read here")
        shape, is_fortran, dtype = HEADERS[version](file)
    except Exception as error:  # of Python's parser too, which reads the header
        reason = first_line(error)
        raise ValueError(f"{source} is no array in NumPy's .npy form ({reason})") from error
    if dtype.kind not in "iuf":
        raise ValueError(f"{source} holds {dtype}; expected real numbers")
    if min(shape, default=0) < 0:
        raise ValueError(f"{source}: its header claims the shape {shape}")
    n_claimed, n_left = math.prod(shape) * dtype.itemsize, n_bytes - file.tell()
    if n_claimed != n_left:
        raise ValueError(
            f"{source}: its header claims {shape} of {dtype}, {n_claimed:,} bytes; "
            f"{n_left:,} are there"
        )
    content = file.read(n_claimed)
    if len(content) != n_claimed:
        raise ValueError(f"{source}: {len(content):,} of {n_claimed:,} bytes are there")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def read_npy(path: Path) -> np.ndarray:
    """Read a .npy file of real numbers.

    Raises:
      ValueError: as `parse_npy`.
      OSError: where it cannot be read.
    """
    with path.open("rb") as file:
        return parse_npy(file, path.stat().st_size, path)
