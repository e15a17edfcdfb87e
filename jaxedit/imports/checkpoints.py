"""The difference of two HF checkpoints, tensor by tensor."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from jaxedit.imports.changes import WeightChange, check_finite
from jaxedit.models.checkpoint import Checkpoint
from jaxedit.models.hf_directory import open_directory
from jaxedit.models.load import resolve_path
from jaxedit.models.orbax import is_converted


def read_difference(
    directory: Path, source: str, names: Collection[str]
) -> dict[str, WeightChange]:
    """Read what a checkpoint has changed of its base, in float32; equal tensors are left out.

    Args:
      directory: the changed checkpoint.
      source: the base, as `jaxedit.load` took it.
      names: of the tensors that the decoder reads; copies of a tied head and the like are none.

    Raises:
      ValueError: where one of them is not an HF directory with safetensors files, or they have
        other sizes or tensors.
    """
    base, changed = _open(resolve_path(source)), _open(directory)
    if base.config != changed.config:
        raise ValueError(
            f"{directory} is another model than {source}: their configurations say "
            f"{_sizes(changed)} and {_sizes(base)}"
        )
    for checkpoint in (base, changed):
        lacking = sorted(set(names) - checkpoint.names)
        if lacking:
            raise ValueError(f"{checkpoint.place} lacks {lacking[:3]} (of {len(lacking)} tensors)")

    changes = {}
    for name in names:
        change = _difference(name, changed, base)
        whole = change.read(tuple(slice(0, size) for size in change.shape))
        check_finite(directory, name, whole)
        if np.any(whole):
            changes[name] = change
    if not changes:
        raise ValueError(f"{directory} and {source} have the same weights: nothing is changed")
    return changes


def _open(path: Path) -> Checkpoint:
    if path.suffix == ".gguf" or is_converted(path):
        raise ValueError(
            f"{path} is no HF directory with safetensors files, which a difference needs of both "
            "checkpoints: give --model one"
        )
    return open_directory(path)


def _difference(name: str, changed: Checkpoint, base: Checkpoint) -> WeightChange:
    shape = changed.shape(name)
    if shape != base.shape(name):
        raise ValueError(
            f"tensor {name!r} has shape {shape} in {changed.place}, {base.shape(name)} in "
            f"{base.place}"
        )

    def read(spans: tuple[slice, ...]) -> np.ndarray:
        ours, theirs = changed.read(name, spans), base.read(name, spans)
        return ours.astype(np.float32) - theirs.astype(np.float32)

    return WeightChange(shape, read)


def _sizes(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    sizes = " ".join(f"{letter}={size}" for letter, size in config.sizes().items())
    return f"{config.family} {sizes}"
