"""HF model directories: config.json, tokenizer files, and one or several safetensors files."""

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxedit.files import read_json, shorten_json
from jaxedit.models import family as families
from jaxedit.models.checkpoint import Checkpoint
from jaxedit.models.orbax import is_converted
from jaxedit.models.tokenizer import read_tokenizer

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of what weights may be stored as


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
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: "
            "an HF model directory holds config.json, *.safetensors and a tokenizer"
        )
    config = families.read_config(read_json(path), path)
    family = families.find(config.family)

    # Where its weights are. A converted directory has no safetensors files.
    files: dict[str, tuple[Shard, str]] = {}
    if not is_converted(directory):
        files = open_tensors(directory, family)

    def tensor(name: str) -> Any:
        shard, stored_name = files[name]
        return shard.file.get_slice(stored_name)

    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensor(name).get_shape())

    def read(name: str, spans: tuple[slice, ...]) -> np.ndarray:
        dtype = tensor(name).get_dtype()
        if dtype not in FLOATS:
            shard, stored_name = files[name]
            raise ValueError(
                f"tensor {stored_name!r} of {directory / shard.name} is of type {dtype}; weights "
                f"are read as {', '.join(FLOATS)}: give the model as it was before quantisation"
            )
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


def _open_safetensors(path: Path) -> Shard:
    import safetensors

    try:
        return Shard(path.name, safetensors.safe_open(path, framework="numpy"))
    except Exception as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}"
        ) from error


def open_tensors(directory: Path, family: ModuleType) -> dict[str, tuple[Shard, str]]:
    """Open a directory's safetensors files and check them against their index.

    Args:
      directory: an HF directory.
      family: whose names begin with a prefix, which files of `AutoModel.save_pretrained` and of
        the first GPT-2 leave out everywhere.

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
        listed = _read_weight_map(index)
        paths = sorted({directory / file for file in listed.values()})
    else:
        raise ValueError(_no_safetensors(directory))

    # Names without the family's prefix get it, but for the head's, which never has one.
    prefix = family.PREFIX
    heads = tuple(name for name in family.WEIGHTS if not name.startswith(prefix))
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
            name = stored if stored in heads else missing_prefix + stored
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


def _read_weight_map(index: Path) -> dict[str, str]:
    """Read an index: tensor name -> file name.

    Raises:
      ValueError: where it is of another form, or names files elsewhere.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(
            f"{index} has weight_map {shorten_json(listed)}; expected an object of tensor names "
            "and their files"
        )
    for name, file in listed.items():
        if not isinstance(file, str) or not file or Path(file).name != file or "\0" in file:
            raise ValueError(
                f"{index} says that {name[:80]!r} is in {shorten_json(file)}; expected the name of "
                "a file beside it"
            )
    return listed


def _no_safetensors(directory: Path) -> str:
    """Say that a directory holds no safetensors file, and what to do with one of another kind."""
    message = f"{directory} holds neither model.safetensors nor model.safetensors.index.json"
    other = sorted(path.name for path in directory.glob("*.bin"))
    remedy = "save_pretrained(DIRECTORY, safe_serialization=True)"
    if other:
        return f"{message}; {other[0]} is there: convert it with transformers' {remedy}"
    gguf = sorted(path.name for path in directory.glob("*.gguf"))
    if gguf:
        return f"{message}; {gguf[0]} is there: give its own path"
    return (
        f"{message}. Of weights only safetensors are read, and fetched from the hub: where a model "
        "is there as pytorch_model.bin alone, load it with transformers and write it with "
        f"{remedy}, or take a revision that has safetensors, such as a pull request's: "
        "owner/name@refs/pr/N"
    )
