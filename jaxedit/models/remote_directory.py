"""HF model directories in a bucket: small files are fetched, weights are read from where they lie.

Of every tensor the rows are read that a device holds, so each host of several reads its own part
and none of them needs room for the model on its disk.
"""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxedit.files import cache_folder, parse_json, read_json, shorten_json, write_atomic
from jaxedit.models.conversion_record import RECORD
from jaxedit.models.hub import SAFETENSORS, SMALL_FILES, TORCH, UNWANTED
from jaxedit.models.tensor_files import StoredTensor
from jaxedit.remote import Place, fetch_file, fetch_folder, open_place

WHERE = "remote_weights.json"  # beside the fetched files: the directory's address
LENGTH_BYTES = 8  # at the start of a safetensors file: how long its header is
MOST_HEADER_BYTES = 100_000_000  # as the safetensors library has it
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
}


def fetch_model(address: str) -> Path:
    """Fetch what is fetched of a model in a bucket; return its folder or .gguf file here.

    Of an HF directory with safetensors files everything but these. What `jaxedit convert` wrote,
    torch's files and .gguf files are fetched whole.

    Raises:
      ValueError: where there is no model, or it cannot be had.
    """
    if address.endswith(".gguf"):
        return fetch_file(address)
    names = open_place(address).list_files()
    if RECORD in names:
        return fetch_folder(address, ["*"])
    if "config.json" not in names:
        found = ", ".join(sorted(names)[:3]) or "nothing"
        raise ValueError(
            f"{address} holds {found}; expected an HF model directory with a config.json, a folder "
            "of jaxedit convert, or a .gguf file"
        )
    has_safetensors = any("/" not in name and name.endswith(".safetensors") for name in names)
    wanted = SMALL_FILES if has_safetensors else [*SMALL_FILES, TORCH]
    folder = fetch_folder(address, wanted, UNWANTED)
    (folder / WHERE).unlink(missing_ok=True)
    if has_safetensors:  # written last: a file of this name in the bucket is replaced
        weights = sorted(name for name in names if Path(name).match(SAFETENSORS))
        write_atomic(folder / WHERE, json.dumps({"address": address, "files": weights}))
    return folder


def remote_files(directory: Path) -> dict[str, Place]:
    """Return where a directory's files of weights lie in a bucket; empty: they lie in it."""
    is_ours = directory.parent == cache_folder() / "remote"  # a model may bring such a file itself
    if not is_ours or not (directory / WHERE).is_file():
        return {}
    about = read_json(directory / WHERE)
    place = open_place(about["address"])
    return {name: place / name for name in about["files"]}


def open_remote_safetensors(place: Place) -> list[StoredTensor]:
    """Open a safetensors file in a bucket: its header is read now, tensors when they are wanted.

    Raises:
      ValueError: where it cannot be read, or is none.
    """
    # The header's length, the header, and then the tensors, each of which it says where it lies.
    length = int.from_bytes(place.read(0, LENGTH_BYTES), "little")
    if not 0 < length <= MOST_HEADER_BYTES:
        raise ValueError(f"{place.address} is no safetensors file")
    start = LENGTH_BYTES + length
    header = parse_json(place.read(LENGTH_BYTES, start), f"the header of {place.address}")
    found = []
    for name, about in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(about["dtype"]), tuple(int(size) for size in about["shape"])
            first, end = (start + int(offset) for offset in about["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            said = shorten_json(about)
            raise ValueError(f"{place.address}: the header says of {name!r}: {said}") from error
        file = place.address.rpartition("/")[2]
        tensor = _RemoteTensor(place, name, dtype, shape, first, end)
        found.append(StoredTensor(file, name, dtype, shape, tensor.read))
    return found


class _RemoteTensor:
    """A tensor in a safetensors file in a bucket, between two bytes of it."""

    def __init__(
        self, place: Place, name: str, dtype: str, shape: tuple[int, ...], first: int, end: int
    ):
        self.place, self.name, self.dtype, self.shape = place, name, dtype, shape
        self.first, self.end = first, end

    def read(self, spans: tuple[slice, ...]) -> np.ndarray:
        """Read a rectangle: of the file, the rows that it lies in."""
        dtype = DTYPES[self.dtype]
        n_rows, *row = self.shape or (1,)
        row_bytes = math.prod(row) * dtype.itemsize
        rows = range(*spans[0].indices(n_rows)) if spans else range(1)
        if self.end - self.first != n_rows * row_bytes:
            raise ValueError(
                f"{self.place.address} has {self.end - self.first:,} bytes for {self.name!r}, "
                f"which are not those of {self.dtype} {self.shape}"
            )
        first = self.first + rows.start * row_bytes
        content = self.place.read(first, first + len(rows) * row_bytes)
        if len(content) != len(rows) * row_bytes:
            raise ValueError(
                f"{self.place.address} ends within {self.name!r}: is the upload complete?"
            )
        array = np.frombuffer(content, dtype).reshape(len(rows), *row)
        return array[(slice(None), *spans[1:])] if spans else array.reshape(())
