"""Files of named tensors, opened; a tensor, or a rectangle of it, is read when it is asked for."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxedit.torch_files import read_torch

SAFETENSORS_NAMES = {  # torch's names of dtypes -> safetensors' names
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
      file: the file's name.
      name: of the tensor there.
      dtype: as safetensors writes it, e.g. "BF16".
      shape: of the whole.
      read: one slice for each dimension -> that rectangle.
    """

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]

    def read_all(self) -> np.ndarray:
        """Read the whole tensor."""
        return self.read(tuple(slice(None) for _ in self.shape))


def open_safetensors(path: Path) -> list[StoredTensor]:
    """Open a safetensors file.

    Raises:
      ValueError: where it is not a whole one.
    """
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="numpy")
    except Exception as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}"
        ) from error
    found = []
    for name in list(file.keys()):
        entry = file.get_slice(name)
        shape = tuple(entry.get_shape())
        found.append(StoredTensor(path.name, name, entry.get_dtype(), shape, entry.__getitem__))
    return found


def open_torch_tensors(path: Path) -> list[StoredTensor]:
    """Open a torch file of weights (pytorch_model.bin); nothing in it is run.

    A file of torch 1.6 or newer is mapped into memory, an older one is read whole.

    Raises:
      ValueError: where torch is not installed, or the file holds something else than tensors.
    """
    found = []
    for name, tensor in read_torch(path, map_file=zipfile.is_zipfile(path)).items():
        dtype = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
        if dtype not in SAFETENSORS_NAMES:
            raise ValueError(
                f"{path} holds {name!r}, of type {dtype}; expected tensors of numbers alone"
            )
        shape = tuple(tensor.shape)
        read = _torch_reader(tensor)
        found.append(StoredTensor(path.name, name, SAFETENSORS_NAMES[dtype], shape, read))
    return found


def _torch_reader(tensor: Any) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Return what reads a rectangle of a torch tensor as a NumPy array."""
    import torch

    def read(spans: tuple[slice, ...]) -> np.ndarray:
        part = tensor.detach()[spans].contiguous()
        if part.dtype == torch.bfloat16:  # which NumPy has not of its own
            return part.view(torch.int16).numpy().view(jnp.bfloat16)
        return part.numpy()

    return read
