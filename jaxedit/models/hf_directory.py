"""HF model directories: config.json, tokenizer files, and weights in one or several files.

Weights are read from safetensors files, and from torch's (.bin) where there are no others; of a
directory in a bucket from there (`jaxedit.models.remote_directory`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from jaxedit.files import read_json, shorten_json
from jaxedit.models import family as families
from jaxedit.models.checkpoint import Checkpoint
from jaxedit.models.hf_tokenizer import read_tokenizer
from jaxedit.models.orbax import is_converted
from jaxedit.models.remote_directory import open_remote_safetensors, remote_files
from jaxedit.models.tensor_files import StoredTensor, open_safetensors, open_torch_tensors
from jaxedit.remote import Place

ADAPTER = "adapter_config.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of what weights may be stored as


class FileKind(NamedTuple):
    """A kind of file that weights lie in: one file's name, several files' index, how one opens."""

    single: str
    index: str
    open: Callable[[Path], list[StoredTensor]]


KINDS = (
    FileKind("model.safetensors", "model.safetensors.index.json", open_safetensors),
    FileKind("pytorch_model.bin", "pytorch_model.bin.index.json", open_torch_tensors),
)


def open_directory(directory: Path) -> Checkpoint:
    """Open an HF directory, or one that `jaxedit convert` made of it.

    Raises:
      ValueError: where a file is missing, cut short or contradicts another, or the directory holds
        an adapter as well.
    """
    _check_no_adapter(directory)

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
    tensors: dict[str, StoredTensor] = {}
    if not is_converted(directory):
        tensors = open_tensors(directory, family)

    def read(name: str, spans: tuple[slice, ...]) -> np.ndarray:
        stored = tensors[name]
        if stored.dtype not in FLOATS:
            raise ValueError(
                f"tensor {stored.name!r} of {directory / stored.file} is of type {stored.dtype}; "
                f"weights are read as {', '.join(FLOATS)}: give the model as it was before "
                "quantisation"
            )
        return stored.read(spans)

    return Checkpoint(
        place=str(directory),
        family=family,
        config=config,
        weights=family.WEIGHTS,
        names=frozenset(tensors),
        shape=lambda name: tensors[name].shape,
        read=read,
        tokenizer=read_tokenizer(directory, config.V),
    )


def _check_no_adapter(directory: Path) -> None:
    """Raise a ValueError on an adapter, alone or beside a model: transformers would load it too."""
    if not (directory / ADAPTER).is_file():
        return
    if (directory / "config.json").is_file():
        raise ValueError(
            f"{directory} holds an adapter ({ADAPTER}) beside a model: give a copy of the folder "
            "without the adapter's files; jaxedit.import_adapter adds an adapter to a model"
        )
    base = read_json(directory / ADAPTER).get("base_model_name_or_path")
    raise ValueError(
        f"{directory} holds an adapter and no model: load the model it is for ({base}), and add "
        "the adapter by jaxedit.import_adapter"
    )


def open_tensors(directory: Path, family: ModuleType) -> dict[str, StoredTensor]:
    """Open a directory's files of weights and check them against their index.

    Args:
      directory: an HF directory.
      family: whose names begin with a prefix, which files of `AutoModel.save_pretrained` and of
        the first GPT-2 leave out everywhere.

    Returns:
      Canonical tensor name -> the tensor.

    Raises:
      ValueError: where a file is missing, cut short or contradicts another.
    """
    remote = remote_files(directory)
    kind, names, listed = _find_files(directory, remote)

    # Names without the family's prefix get it, but for the head's, which never has one.
    prefix = family.PREFIX
    heads = tuple(name for name in family.WEIGHTS if not name.startswith(prefix))
    tensors: dict[str, StoredTensor] = {}
    for file in names:
        if file not in remote and not (directory / file).is_file():
            raise ValueError(
                f"{directory / file} is missing, though {kind.index} lists it; is the download "
                "complete?"
            )
        is_here = file not in remote
        found = kind.open(directory / file) if is_here else open_remote_safetensors(remote[file])
        has_prefix = any(stored.name.startswith(prefix) for stored in found)
        missing_prefix = "" if has_prefix else prefix
        for stored in found:
            name = stored.name if stored.name in heads else missing_prefix + stored.name
            if name in tensors:
                first = tensors[name].file
                raise ValueError(f"tensor {name!r} is in {first} and again in {file}")
            if listed is not None and listed.get(stored.name) != file:
                raise ValueError(
                    f"tensor {stored.name!r} is in {file}, "
                    f"but {kind.index} says {listed.get(stored.name)!r}"
                )
            tensors[name] = stored

    lost = sorted(set(listed or ()) - {stored.name for stored in tensors.values()})
    if lost:
        raise ValueError(
            f"{kind.index} lists {lost[:3]} (of {len(lost)}), which are in none of the files"
        )
    return tensors


def _find_files(
    directory: Path, remote: Mapping[str, Place]
) -> tuple[FileKind, list[str], dict[str, str] | None]:
    """Find the files of weights: their kind, their names, and the index where there is one.

    Args:
      directory: the HF directory.
      remote: the files of weights that lie elsewhere.

    Raises:
      ValueError: where there are none that are read.
    """
    for kind in KINDS:
        if kind.single in remote or (directory / kind.single).is_file():
            return kind, [kind.single], None  # first, as transformers does where both are there
        if (directory / kind.index).is_file():
            listed = _read_weight_map(directory / kind.index)
            return kind, sorted(set(listed.values())), listed
    raise ValueError(_no_weights(directory))


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


def _no_weights(directory: Path) -> str:
    """Say that a directory holds no weights that are read, and what it holds in their place."""
    names = ", ".join(name for kind in KINDS for name in (kind.single, kind.index))
    message = f"{directory} holds none of {names}"
    gguf = sorted(path.name for path in directory.glob("*.gguf"))
    if gguf:
        return f"{message}; {gguf[0]} is there: give its own path"
    other = sorted(path.name for path in directory.glob("*.safetensors"))
    other += sorted(path.name for path in directory.glob("*.bin"))
    if other:
        return (
            f"{message}; {other[0]} is there: load it with transformers and write it by "
            "save_pretrained(DIRECTORY)"
        )
    return message
