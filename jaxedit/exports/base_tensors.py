"""The tensors of a base model as an HF checkpoint has them, each read when it is asked for.

Of an HF directory they are those of its files, under the names they have there. A .gguf file's are
dequantised, a converted directory's come from the loaded model; both are put into HF's layout by
the family's table.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from jaxedit import axes
from jaxedit.exports.safetensors_stream import TensorHeader
from jaxedit.mesh import to_host
from jaxedit.models import family as families
from jaxedit.models.checkpoint import expand_name, read_parameter
from jaxedit.models.config import DecoderConfig
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.gguf.checkpoint import open_gguf
from jaxedit.models.hf_directory import open_tensors
from jaxedit.models.model import Model
from jaxedit.models.orbax import is_converted
from jaxedit.models.weight_layout import tensor_shape, to_tensor

STORED_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NAMES = {stored: name for name, stored in STORED_DTYPES.items()}


class BaseTensor(NamedTuple):
    """A tensor of the base.

    Attributes:
      header: its name in the file, dtype and shape.
      read: () -> the tensor.
      is_gathered: whether all processes must read it, since its shards lie with all of them.
    """

    header: TensorHeader
    read: Callable[[], np.ndarray]
    is_gathered: bool = False


def base_tensors(model: Model, path: Path) -> dict[str, BaseTensor]:
    """Find the tensors of a base: HF's name -> tensor, in the order of the files.

    Args:
      model: that was loaded from it.
      path: of its HF or converted directory, or of its .gguf file.

    Raises:
      ValueError: where the files are not there any more, or are not whole.
    """
    family = families.find(model.config.family)
    if path.suffix == ".gguf":
        source = open_gguf(path)
        return _by_table(model, family, functools.partial(read_parameter, source), "float32")
    if is_converted(path):
        read = functools.partial(_gather_parameter, model)
        return _by_table(model, family, read, str(model.dtype), is_gathered=True)
    found = {}
    for name, stored in open_tensors(path, family).items():
        header = TensorHeader(stored.name, stored.dtype, stored.shape)
        found[name] = BaseTensor(header, stored.read_all)
    return found


def base_dtype(model: Model, tensors: dict[str, BaseTensor]) -> str:
    """Return the dtype of a base's own weights: that of the weight that edits change.

    Of another than "float32", "bfloat16" and "float16", "float32".
    """
    name = model.metadata.tensor_names["mlp/w_down"][0].format(l=0)
    return _NAMES.get(tensors[name].header.dtype, "float32")


def _by_table(
    model: Model,
    family: ModuleType,
    read: Callable[[str, int], np.ndarray],
    dtype: str,
    is_gathered: bool = False,
) -> dict[str, BaseTensor]:
    """Put a base's parameters into the tensors of an HF checkpoint.

    Args:
      model: its configuration.
      family: whose table says which tensors there are.
      read: (parameter, layer) -> one layer of it.
      dtype: of the tensors.
      is_gathered: see `BaseTensor`.
    """
    config, shapes = model.config, parameter_shapes(model.config)
    found = {}
    for pattern, entry in family.WEIGHTS.items():
        if entry is None or not set(entry[0].split()) <= set(shapes):
            continue
        for layer, name in enumerate(expand_name(pattern, config.L)):
            header = TensorHeader(name, STORED_DTYPES[dtype], tensor_shape(config, entry))
            read_tensor = functools.partial(_read_tensor, read, config, entry, layer, dtype)
            found[name] = BaseTensor(header, read_tensor, is_gathered)
    return found


def _read_tensor(
    read: Callable[[str, int], np.ndarray],
    config: DecoderConfig,
    entry: tuple[str, str],
    layer: int,
    dtype: str,
) -> np.ndarray:
    """Read a tensor of one layer by its line in the family's table."""
    parameters = [read(parameter, layer) for parameter in entry[0].split()]
    return to_tensor(config, entry, parameters).astype(np.dtype(dtype))


def _gather_parameter(model: Model, name: str, layer: int) -> np.ndarray:
    """Gather one layer of a loaded model's parameter, without the copies of key-value heads."""
    letters, stacked = axes.PARAMETERS[name], model.base[name]
    array = to_host(stacked[layer] if letters.startswith("L") else stacked)
    kv_axis = letters.removeprefix("L").find("K")
    if kv_axis < 0:
        return array
    return np.take(array, range(0, array.shape[kv_axis], model.config.kv_replication), kv_axis)
