"""HF model directories: config.json, tokenizer files, and one or several safetensors files."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.models import family as families
from jaxedit.models.checkpoint import Checkpoint
from jaxedit.models.family import Fields
from jaxedit.models.orbax import is_converted
from jaxedit.models.tokenizer import read_tokenizer


class Shard(NamedTuple):
    """One safetensors file, opened: its name, and what `safetensors.safe_open` returns."""

    name: str
    file: Any


def open_directory(directory: Path) -> Checkpoint:
    """Open an HF directory, or one that `jaxedit convert` made of it.

    Raises:
      ValueError: where a file is missing, cut short or contradicts another.
    """
    # What the model is, by its configuration.
    values = _read_json(directory / "config.json")
    families.reject_moe(values)
    family = families.find(values.get("model_type", "(none)"))
    config = family.config(Fields(values))

    # Where its weights are. A converted directory has no safetensors files.
    files: dict[str, tuple[Shard, str]] = {}
    if not is_converted(directory):
        files = open_tensors(directory, getattr(family, "PREFIX", ""))

    def tensor(name: str) -> Any:
        shard, stored_name = files[name]
        return shard.file.get_slice(stored_name)

    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensor(name).get_shape())

    def read(name: str, spans: tuple[slice, ...]) -> np.ndarray:
        return tensor(name)[spans]

    return Checkpoint(
        place=str(directory),
        family=family,
        config=config,
        weights=family.WEIGHTS,
        names=frozenset(files),
        shape=shape,
        read=read,
        tokenizer=read_tokenizer(directory),
    )


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: "
            "an HF model directory holds config.json, *.safetensors and a tokenizer"
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _open_safetensors(path: Path) -> Shard:
    import safetensors

    try:
        return Shard(path.name, safetensors.safe_open(path, framework="numpy"))
    except Exception as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}"
        ) from error


def open_tensors(directory: Path, prefix: str) -> dict[str, tuple[Shard, str]]:
    """Open a directory's safetensors files and check them against their index.

    Args:
      directory: an HF directory.
      prefix: what canonical names begin with; some files leave it out everywhere.

    Returns:
      Canonical tensor name -> (file, name in the file).

    Raises:
      ValueError: where a file is missing, cut short or contradicts another.
    """
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():  # first, as transformers does where both are there
        listed, paths = None, [single]
    elif index.is_file():
        listed = _read_json(index).get("weight_map", {})
        paths = sorted({directory / file for file in listed.values()})
    else:
        raise ValueError(_no_safetensors(directory))

    # Names without the family's prefix get it, but for the head's, which never has one.
    files: dict[str, tuple[Shard, str]] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"{path} is missing, though {index.name} lists it; is the download complete?"
            )
        shard = _open_safetensors(path)
        stored_names = list(shard.file.keys())
        has_prefix = any(name.startswith(prefix) for name in stored_names)
        missing_prefix = "" if has_prefix else prefix
        for stored in stored_names:
            name = stored if stored.startswith("lm_head") else missing_prefix + stored
            if name in files:
                first = files[name][0].name
                raise ValueError(f"tensor {name!r} is in {first} and again in {path.name}")
            if listed is not None and listed.get(stored) != path.name:
                raise ValueError(
                    f"tensor {stored!r} is in {path.name}, "
                    f"but {index.name} says {listed.get(stored)!r}"
                )
            files[name] = (shard, stored)

    lost = sorted(set(listed or ()) - {stored for _, stored in files.values()})
    if lost:
        raise ValueError(
            f"{index.name} lists {lost[:3]} (of {len(lost)}), which are in none of the files"
        )
    return files


def _no_safetensors(directory: Path) -> str:
    """Say that a directory holds no safetensors file, and what to do with one of another kind."""
    message = f"{directory} holds neither model.safetensors nor model.safetensors.index.json"
    other = sorted(path.name for path in directory.glob("*.bin"))
    if not other:
        return message
    remedy = "convert it with save_pretrained(safe_serialization=True)"
    return f"{message}; {other[0]} is there: {remedy}"
