"""An opened checkpoint, and its weights read to stacked arrays on devices.

The way of a parameter: the family's table names its tensors, one or one for each layer
(`StoredParameter`); the mesh says which slice each device holds; of every tensor the rectangle with
that slice is read (`jaxedit.models.weight_layout`), put in the parameter's order, and copied into
the device's array.
"""

import functools
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit import axes
from jaxedit.mesh import parameter_sharding
from jaxedit.models.config import DecoderConfig
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.family import Weights
from jaxedit.models.tokenizer import Tokenizer
from jaxedit.models.weight_layout import Span, read_parameter_slice

ALIGNMENT_BYTES = 64  # what XLA's CPU buffers begin at a multiple of
STRIP = 64  # rows of a tensor that are transposed together


class Checkpoint(NamedTuple):
    """An opened checkpoint: its model, its tensors' names and how to read a part of a tensor.

    Attributes:
      place: the path, for messages.
      family: the module of the model's family.
      config: the decoder as the file has it, before `replicate_kv_heads_for`.
      weights: the family's table for this kind of file.
      names: of the tensors that are there.
      shape: name -> the tensor's shape.
      read: name, and one slice for each dimension -> that rectangle of the tensor.
      tokenizer: the model's.
    """

    place: str
    family: ModuleType
    config: DecoderConfig
    weights: Weights
    names: frozenset[str]
    shape: Callable[[str], tuple[int, ...]]
    read: Callable[[str, tuple[slice, ...]], np.ndarray]
    tokenizer: Tokenizer


class StoredParameter(NamedTuple):
    """Where a parameter is stored.

    Attributes:
      name: the parameter's, e.g. "mlp/w_down".
      tensors: the tensors that hold it: one, or one for each layer.
      entry: their line in the family's table: (parameters, layout).
      part: which of the line's parameters it is.
    """

    name: str
    tensors: list[str]
    entry: tuple[str, str]
    part: int


def load_parameters(
    source: Checkpoint, config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh
) -> dict[str, jax.Array]:
    """Read every parameter slice by slice, each straight to the devices that hold it.

    On the host there is never more than one device's slice of one parameter.

    Args:
      source: the checkpoint, of which `check_tensors` found nothing wrong.
      config: its decoder, after `replicate_kv_heads_for`.
      dtype: of the stored weights.
      mesh: where they go.
    """
    shapes = parameter_shapes(config)
    base: dict[str, jax.Array] = {}
    for pattern, entry in source.weights.items():
        if entry is None or expand_name(pattern, config.L)[0] not in source.names:
            continue
        parameters = entry[0].split()
        if not set(parameters) <= set(shapes):
            continue
        tensors = expand_name(pattern, config.L)
        for part, parameter in enumerate(parameters):
            stored = StoredParameter(parameter, tensors, entry, part)
            base[parameter] = _to_devices(source, config, stored, dtype, mesh)
    return base


def _to_devices(
    source: Checkpoint, config: DecoderConfig, stored: StoredParameter, dtype: jnp.dtype, mesh: Mesh
) -> jax.Array:
    """Read one parameter to the devices of this process that hold it."""
    shape, letters = parameter_shapes(config)[stored.name], axes.PARAMETERS[stored.name]
    sharding = parameter_sharding(mesh, stored.name, shape)

    # Each distinct slice is read once, however many devices hold it.
    holders: dict[tuple[Span, ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        spans = tuple(span.indices(size)[:2] for span, size in zip(index, shape, strict=True))
        holders.setdefault(spans, []).append(device)

    arrays = []
    for spans, devices in holders.items():
        cut = dict(zip(letters, spans, strict=True))
        held = _read_slice(source, config, stored, cut, dtype)
        copies = [jax.device_put(held, device) for device in devices]
        jax.block_until_ready(copies)  # before the next slice takes memory
        arrays += copies
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _read_slice(
    source: Checkpoint,
    config: DecoderConfig,
    stored: StoredParameter,
    cut: dict[str, Span],
    dtype: jnp.dtype,
) -> np.ndarray:
    """Read the slice of a parameter that one device holds, several layers at a time.

    Args:
      source: the checkpoint.
      config: its decoder, after `replicate_kv_heads_for`.
      stored: where the parameter is.
      cut: axis letter -> the slice's span; L is never cut.
      dtype: of the result.
    """
    held = _aligned(tuple(end - first for first, end in cut.values()), dtype)

    def fill(layer: int, name: str) -> None:
        read = functools.partial(source.read, name)
        tensor = read_parameter_slice(read, config, stored.entry, stored.part, cut)
        _copy(tensor, held[layer if "L" in cut else ...])

    # More threads would hold as much again as the slice itself.
    n_threads = max(1, len(stored.tensors) // 3)
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(fill, range(len(stored.tensors)), stored.tensors))
    return held


def read_parameter(source: Checkpoint, name: str, layer: int) -> np.ndarray:
    """Read one layer of a parameter whole, in the decoder's layout without L.

    Args:
      source: the checkpoint.
      name: the parameter's.
      layer: which; of a parameter that is none of a layer's, any.

    Raises:
      ValueError: where the checkpoint lacks it.
    """
    for pattern, entry in source.weights.items():
        tensors = expand_name(pattern, source.config.L)
        parameters = entry[0].split() if entry else []
        if entry is None or name not in parameters or tensors[0] not in source.names:
            continue
        read = functools.partial(source.read, tensors[layer if len(tensors) > 1 else 0])
        spans = [(0, size) for size in parameter_shapes(source.config)[name]]
        cut = dict(zip(axes.PARAMETERS[name], spans, strict=True))
        return read_parameter_slice(read, source.config, entry, parameters.index(name), cut)
    raise ValueError(f"{source.place} holds no {name}")


def _aligned(shape: tuple[int, ...], dtype: jnp.dtype) -> np.ndarray:
    """Make an empty array that a CPU device takes as it is, without a copy.

    XLA takes over memory that begins at a multiple of ALIGNMENT_BYTES; a copy might outlive the
    call.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(n_bytes + ALIGNMENT_BYTES, np.uint8)
    first = -buffer.ctypes.data % ALIGNMENT_BYTES
    return buffer[first : first + n_bytes].view(dtype).reshape(shape)


def _copy(tensor: np.ndarray, out: np.ndarray) -> None:
    """Copy a tensor, transposed ones in strips of rows that a cache holds.

    At once, a transposed matrix takes five times as long.
    """
    # NumPy copies bfloat16, which is not its own, one by one; as whole numbers it is faster.
    if tensor.dtype == out.dtype == jnp.bfloat16:
        tensor, out = tensor.view(np.uint16), out.view(np.uint16)
    if tensor.flags.c_contiguous:
        out[...] = tensor
        return
    # Axes from the longest stride to the shortest. A strip is a range of the slowest one, as long
    # as STRIP rows, where a row runs along the fastest.
    slowest, *between = np.argsort(tensor.strides)[::-1][:-1]
    step = max(1, STRIP // math.prod(tensor.shape[axis] for axis in between))
    everything = (slice(None),) * slowest
    for first in range(0, tensor.shape[slowest], step):
        strip = (*everything, slice(first, first + step))
        out[strip] = tensor[strip]


def expand_name(pattern: str, n_layers: int) -> list[str]:
    """List the tensors that a name in a table stands for: one, or one for each layer."""
    if "{l}" not in pattern:
        return [pattern]
    return [pattern.replace("{l}", str(layer)) for layer in range(n_layers)]


def log_summary(source: Checkpoint, dtype: jnp.dtype) -> None:
    """Log which model is about to be loaded, how large it is, and in which dtype."""
    n_parameters = sum(map(math.prod, parameter_shapes(source.config).values()))
    family = source.config.family
    logging.getLogger("jaxedit").info(
        "%s: %s, %s parameters as %s", source.place, family, f"{n_parameters:,}", dtype
    )
