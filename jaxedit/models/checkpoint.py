"""Weights from files to stacked arrays on devices, through a family's table."""

import functools
import json
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit import axes
from jaxedit.mesh import parameter_sharding
from jaxedit.models import family as families
from jaxedit.models.config import DecoderConfig
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.family import Fields, Weights
from jaxedit.models.orbax import is_converted
from jaxedit.models.tokenizer import Tokenizer, read_tokenizer
from jaxedit.models.weight_layout import read_parameter_slice, tensor_shape

ALIGNMENT_BYTES = 64  # what XLA's CPU buffers begin at a multiple of
STRIP = 64  # rows of a tensor that are transposed together


class Checkpoint(NamedTuple):
    """An opened checkpoint: what it is, the names in it and how to read a rectangle of one tensor.

    `config` is the decoder as the file has it, before `for_mesh`.
    """

    place: str
    family: ModuleType
    config: DecoderConfig
    weights: Weights
    names: frozenset[str]
    shape: Callable[[str], tuple[int, ...]]
    read: Callable[[str, tuple[slice, ...]], np.ndarray]
    tokenizer: Tokenizer


def open_directory(directory: Path) -> Checkpoint:
    """Opens an HF directory: config.json, tokenizer files, and one or several safetensors files.

    Raises:
      ValueError: where a file is missing, cut short or contradicts another.
    """
    values = _read_json(directory / "config.json")
    families.reject_moe(values)
    family = families.find(values.get("model_type", "(none)"))
    config = family.config(Fields(values))
    files = (
        {} if is_converted(directory) else _tensor_files(directory, getattr(family, "PREFIX", ""))
    )

    def tensor(name: str) -> Any:
        shard, stored_name = files[name]
        return shard.file.get_slice(stored_name)

    return Checkpoint(
        str(directory),
        family,
        config,
        family.WEIGHTS,
        frozenset(files),
        lambda name: tuple(tensor(name).get_shape()),
        lambda name, spans: tensor(name)[spans],
        read_tokenizer(directory),
    )


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: an HF model directory holds config.json, *.safetensors and a tokenizer"
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


class _Shard(NamedTuple):
    """One safetensors file, opened."""

    name: str
    file: Any


def _open_safetensors(path: Path) -> _Shard:
    import safetensors

    try:
        return _Shard(path.name, safetensors.safe_open(path, framework="numpy"))
    except Exception as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}"
        ) from error


def _tensor_files(directory: Path, prefix: str) -> dict[str, tuple[_Shard, str]]:
    """Canonical tensor name -> (file, name in the file)."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():  # first, as transformers does where both are there
        listed, paths = None, [single]
    elif index.is_file():
        listed = _read_json(index).get("weight_map", {})
        paths = sorted({directory / file for file in listed.values()})
    else:
        other = sorted(p.name for p in directory.glob("*.bin"))
        hint = (
            f"; {other[0]} is there: convert it with save_pretrained(safe_serialization=True)"
            if other
            else ""
        )
        raise ValueError(
            f"{directory} holds neither model.safetensors nor model.safetensors.index.json{hint}"
        )
    files: dict[str, tuple[_Shard, str]] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"{path} is missing, though {index.name} lists it; is the download complete?"
            )
        shard = _open_safetensors(path)
        stored_names = list(shard.file.keys())
        add = prefix if prefix and not any(name.startswith(prefix) for name in stored_names) else ""
        for stored in stored_names:
            name = stored if stored.startswith("lm_head") else add + stored
            if name in files:
                raise ValueError(
                    f"tensor {name!r} is in {files[name][0].name} and again in {path.name}"
                )
            if listed is not None and listed.get(stored) != path.name:
                raise ValueError(
                    f"tensor {stored!r} is in {path.name}, but {index.name} says {listed.get(stored)!r}"
                )
            files[name] = (shard, stored)
    lost = sorted(set(listed or ()) - {stored for _, stored in files.values()})
    if lost:
        raise ValueError(
            f"{index.name} lists {lost[:3]} (of {len(lost)}), which are in none of the files"
        )
    return files


def load_parameters(
    source: Checkpoint, config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh
) -> dict[str, jax.Array]:
    """Reads every parameter slice by slice, each straight to the devices that hold it.

    On the host there is never more than one device's slice of one parameter.

    Args:
      source: the checkpoint.
      config: its decoder `for_mesh`.
      dtype: of the stored weights.
      mesh: where they go.

    Raises:
      ValueError: on a tensor that is unmapped, missing, or of another shape than the configuration
        says.
    """
    shapes = parameter_shapes(config)
    _check_names(source, shapes)
    base: dict[str, jax.Array] = {}
    for pattern, entry in source.weights.items():
        if entry is None or not _has(source, pattern) or not set(entry[0].split()) <= set(shapes):
            continue
        names = [name for _, name in _expand(pattern, config.L)]
        for name in names:
            _check_shape(source, name, entry)
        for part, parameter in enumerate(entry[0].split()):
            base[parameter] = _on_devices(source, config, names, entry, part, dtype, mesh)
    return base


def _on_devices(
    source: Checkpoint,
    config: DecoderConfig,
    names: list[str],
    entry: tuple[str, str],
    part: int,
    dtype: jnp.dtype,
    mesh: Mesh,
) -> jax.Array:
    """One parameter, from one tensor or from one a layer."""
    parameter = entry[0].split()[part]
    shape, letters = parameter_shapes(config)[parameter], axes.PARAMETERS[parameter]
    sharding = parameter_sharding(mesh, parameter, shape)
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        whole = tuple(span.indices(size)[:2] for span, size in zip(index, shape, strict=True))
        holders.setdefault(whole, []).append(device)
    arrays = []
    for index, devices in holders.items():
        held = _read_slice(
            source, config, names, entry, part, dict(zip(letters, index, strict=True)), dtype
        )
        arrays += [jax.device_put(held, device) for device in devices]
        jax.block_until_ready(arrays[-len(devices) :])  # before the next slice takes memory
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _read_slice(
    source: Checkpoint,
    config: DecoderConfig,
    names: list[str],
    entry: tuple[str, str],
    part: int,
    cut: dict[str, tuple[int, int]],
    dtype: jnp.dtype,
) -> np.ndarray:
    """What one device holds of a parameter, its layers read side by side."""
    held = _aligned(tuple(end - first for first, end in cut.values()), dtype)

    def fill(layer: int, name: str) -> None:
        read = functools.partial(source.read, name)
        _copy(
            read_parameter_slice(read, config, entry, part, cut), held[layer if "L" in cut else ...]
        )

    with ThreadPoolExecutor(
        max(1, len(names) // 3)
    ) as pool:  # more would hold as much again as the slice
        list(pool.map(fill, range(len(names)), names))
    return held


def _aligned(shape: tuple[int, ...], dtype: jnp.dtype) -> np.ndarray:
    """An empty array that begins where a CPU device takes it as it is, without a copy that may
    outlive the call.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    raw_Q = np.empty(n_bytes + ALIGNMENT_BYTES, np.uint8)
    first = -raw_Q.ctypes.data % ALIGNMENT_BYTES
    return raw_Q[first : first + n_bytes].view(dtype).reshape(shape)


def _copy(tensor: np.ndarray, out: np.ndarray) -> None:
    """Copies in strips of the tensor's rows that a cache holds: at once, a transposed matrix takes
    five times as long.
    """
    if tensor.flags.c_contiguous:
        out[...] = tensor
        return
    slow, *between = np.argsort(tensor.strides)[::-1][:-1]
    step = max(1, STRIP // math.prod(tensor.shape[axis] for axis in between))
    whole = (slice(None),) * slow
    for first in range(0, tensor.shape[slow], step):
        strip = (*whole, slice(first, first + step))
        out[strip] = tensor[strip]


def _check_names(source: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> None:
    known = {
        name: entry
        for pattern, entry in source.weights.items()
        for _, name in _expand(pattern, source.config.L)
    }
    unmapped = sorted(source.names - set(known))
    if unmapped:
        raise ValueError(
            f"{source.place} holds tensors that the {source.config.family} family does not know: {unmapped[:5]} (of "
            f"{len(unmapped)}). Another architecture, or more layers than the configuration's {source.config.L}?"
        )
    for name in sorted(source.names):
        entry = known[name]
        surplus = [part for part in (entry[0].split() if entry else []) if part not in shapes]
        if surplus and not (source.config.tied and surplus == ["head/w"]):
            raise ValueError(
                f"{source.place} holds {name!r}, but by its configuration the model has no {surplus[0]}"
            )
    needed = [
        name
        for name, entry in known.items()
        if entry is not None and set(entry[0].split()) & set(shapes)
    ]
    missing = [name for name in needed if name not in source.names]
    if missing:
        raise ValueError(
            f"{source.place} lacks {len(missing)} tensors, the first: {missing[:5]}. Is the download complete?"
        )


def _check_shape(source: Checkpoint, name: str, entry: tuple[str, str]) -> None:
    theirs = entry[1].split(" -> ")[0]
    expected, found = tensor_shape(source.config, entry), source.shape(name)
    if found != expected:
        known = {
            letter: size for letter, size in source.config.sizes().items() if letter in entry[1]
        }
        raise ValueError(
            f"tensor {name!r} of {source.place} has shape {found}; its layout {theirs!r} with {known} needs {expected}"
        )


def _expand(pattern: str, n_layers: int) -> list[tuple[int, str]]:
    layers = range(n_layers) if "{l}" in pattern else [0]
    return [(layer, pattern.replace("{l}", str(layer))) for layer in layers]


def _has(source: Checkpoint, pattern: str) -> bool:
    return pattern.replace("{l}", "0") in source.names


def log_summary(source: Checkpoint, dtype: jnp.dtype) -> None:
    """Logs what is about to be loaded."""
    count = sum(int(np.prod(shape)) for shape in parameter_shapes(source.config).values())
    logging.getLogger("jaxedit").info(
        "%s: %s, %s parameters as %s", source.place, source.config.family, f"{count:,}", dtype
    )
