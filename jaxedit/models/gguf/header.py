"""The header of a GGUF file, walked before anything of it is believed.

The `gguf` package makes room for what a length says and counts as far as a count says. Here every
length is compared with the bytes that are left in the file, so that four wrong bytes are an error
and not hours and gigabytes. The format is llama.cpp's (ggml/docs/gguf.md): magic, version, counts,
metadata, and a name, shape, type and offset for each tensor.
"""

import math
import mmap
import struct
from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4  # of a ggml tensor
# GGUF's number of a scalar type -> bytes.
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
LEAST_FIELD_BYTES = 8 + 4 + 1  # an empty name, a type, a value of one byte
LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8  # an empty name, no dimensions, a type, an offset


class _Cursor:
    """A place in a file's bytes; what lies beyond their end is an error."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0
        self.order = "<"

    def skip(self, n_bytes: int, what: str) -> int:
        """Go on by so many bytes and return where they began."""
        left = len(self.data) - self.at
        if n_bytes > left:
            raise ValueError(f"{what} is {n_bytes:,} bytes long, and {left:,} are left")
        first, self.at = self.at, self.at + n_bytes
        return first

    def number(self, code: str, what: str) -> int:
        """Read a whole number of a `struct` code."""
        first = self.skip(struct.calcsize(code), what)
        return struct.unpack_from(self.order + code, self.data, first)[0]

    def text(self, what: str) -> str:
        """Read a string with its length before it."""
        n_bytes = self.number("Q", what)
        first = self.skip(n_bytes, what)
        return self.data[first : first + n_bytes].decode("utf-8")

    def counted(self, n: int, least_bytes: int, what: str) -> range:
        """Return a range over `n` things, each of so many bytes or more."""
        left = len(self.data) - self.at
        if n * least_bytes > left:
            raise ValueError(f"{n:,} {what} cannot lie in the {left:,} bytes that are left")
        return range(n)


def check_header(path: Path) -> None:
    """Check that everything a GGUF file's header announces can lie in the file.

    Raises:
      ValueError: where a length, count, type or offset goes beyond the file or is not known, or a
        name is there twice.
      OSError: where the file cannot be read.
    """
    if path.stat().st_size < 24:
        raise ValueError("it is shorter than a header")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _walk(_Cursor(data))


def _walk(cursor: _Cursor) -> None:
    """Go through the header."""
    if cursor.data[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    cursor.skip(len(MAGIC), "the header")
    version = cursor.number("I", "the version")
    if version % 65536 == 0:  # written on a machine of the other byte order
        cursor.order, cursor.at = ">", len(MAGIC)
        version = cursor.number("I", "the version")
    if version not in VERSIONS:
        raise ValueError(f"it is of version {version}; versions {VERSIONS} are read")
    n_tensors, n_fields = (cursor.number("Q", "the header") for _ in range(2))

    # Metadata: name, type, value.
    names: set[str] = set()
    alignment = 32
    for _ in cursor.counted(n_fields, LEAST_FIELD_BYTES, "metadata fields"):
        name = cursor.text("a metadata field's name")
        _add(names, name)
        kind = cursor.number("I", name)
        if name == "general.alignment" and kind == 4:
            alignment = cursor.number("I", name)
            continue
        _skip_value(cursor, kind, name)
    if alignment < 1 or alignment % 8:
        raise ValueError(f"general.alignment is {alignment}; expected a multiple of 8")

    # Tensors: name, sizes, type, offset; the data follow.
    names, ends = set(), [0]
    for _ in cursor.counted(n_tensors, LEAST_TENSOR_BYTES, "tensors"):
        name = cursor.text("a tensor's name")
        _add(names, name)
        ends.append(_tensor_end(cursor, name))
    first = -(-cursor.at // alignment) * alignment
    left = len(cursor.data) - first
    if max(ends) > max(left, 0):
        raise ValueError(f"its tensors need {max(ends):,} bytes, and {max(left, 0):,} are there")


def _add(names: set[str], name: str) -> None:
    if name in names:
        raise ValueError(f"{name!r} is there twice")
    names.add(name)


def _skip_value(cursor: _Cursor, kind: int, name: str) -> None:
    """Go beyond a metadata value; arrays of arrays are none that models have."""
    if kind in SCALAR_BYTES:
        cursor.skip(SCALAR_BYTES[kind], name)
    elif kind == STRING:
        cursor.text(name)
    elif kind == ARRAY:
        of, n = cursor.number("I", name), cursor.number("Q", name)
        if of in SCALAR_BYTES:
            cursor.skip(n * SCALAR_BYTES[of], name)
        elif of == STRING:
            for _ in cursor.counted(n, 8, f"strings of {name}"):
                cursor.skip(cursor.number("Q", name), name)
        else:
            raise ValueError(f"{name} is an array of type {of}, which is not read")
    else:
        raise ValueError(f"{name} is of type {kind}, which is not known")


def _tensor_end(cursor: _Cursor, name: str) -> int:
    """Read a tensor's entry and return where its data end, counted from where all data begin."""
    import gguf

    n_dims = cursor.number("I", name)
    if not 1 <= n_dims <= MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {n_dims} dimensions")
    sizes = [cursor.number("Q", name) for _ in range(n_dims)]
    kind, offset = cursor.number("I", name), cursor.number("Q", name)
    if kind not in gguf.GGML_QUANT_SIZES:
        raise ValueError(f"tensor {name!r} is of type {kind}, which is not known")
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    if not all(sizes) or sizes[0] % block:
        raise ValueError(f"tensor {name!r} has sizes {sizes}; its blocks are of {block}")
    return offset + math.prod(sizes) // block * block_bytes
