"""A safetensors file written tensor by tensor, so that one tensor at a time is in memory.

The format, as the `safetensors` package documents it, which itself writes a file from all of its
tensors at once: the length of the header (8 bytes, little-endian), the header as JSON, and the
tensors' bytes without gaps.
"""

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxedit.files import partial_path


class TensorHeader(NamedTuple):
    """A tensor as a safetensors file announces it.

    Attributes:
      name: in the file.
      dtype: safetensors' name of it, e.g. "F32", "BF16", "BOOL".
      shape: its sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.itemsize

    @property
    def itemsize(self) -> int:
        """How many bytes an entry takes."""
        bits = re.search(r"\d+", self.dtype)
        return int(bits[0]) // 8 if bits else 1


def in_file_order(headers: Sequence[TensorHeader]) -> list[TensorHeader]:
    """Put tensors in the order in which they lie in a file.

    Those with the largest entries are first, as the package orders them: each tensor begins at a
    multiple of its entries' size.
    """
    return sorted(headers, key=lambda header: (-header.itemsize, header.name))


def stream_safetensors(
    path: Path, headers: Sequence[TensorHeader], read: Callable[[str], np.ndarray]
) -> None:
    """Write a safetensors file so that it is on the disk whole, or not at all.

    Args:
      path: of the file.
      headers: of its tensors.
      read: a tensor's name -> its array, of the announced shape and size of entries; called once
        for each, in the file's order.

    Raises:
      ValueError: on an array of another size than announced.
    """
    ordered = in_file_order(headers)
    announced: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for header in ordered:
        first, end = end, end + header.n_bytes
        announced[header.name] = {
            "dtype": header.dtype,
            "shape": list(header.shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(announced, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    partial = partial_path(path)
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for header in ordered:
            array = read(header.name)
            if array.shape != header.shape or array.nbytes != header.n_bytes:
                raise ValueError(
                    f"tensor {header.name!r} is {array.dtype}{list(array.shape)}, announced as "
                    f"{header.dtype}{list(header.shape)}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
