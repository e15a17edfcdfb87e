"""Models in GGUF files.

Weights are dequantised by the `gguf` package; configuration and tokenizer come from the metadata.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxedit.models import family as families
from jaxedit.models.checkpoint import Checkpoint
from jaxedit.models.gguf.metadata import (
    check_file_kind,
    check_tokenizer,
    finish_architecture,
    metadata_fields,
    read_metadata,
)
from jaxedit.models.gguf.tokenizer import tokenizer_from_metadata
from jaxedit.models.tokenizer import Tokenizer


def open_gguf(path: Path) -> Checkpoint:
    """Open a .gguf file.

    Raises:
      ValueError: on a file that is cut short, of another architecture, or quantised in a way `gguf`
        cannot read.
    """
    reader, metadata = _open(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    family = _find_family(path, metadata)
    values = _hf_values(path, family, metadata, tensors)
    if "rope_freqs.weight" in tensors:
        values["rope_factors"] = _dequantise(path, tensors["rope_freqs.weight"]).tolist()
    config = families.read_config(values, path)

    def shape(name: str) -> tuple[int, ...]:
        # GGUF names the axes from the innermost one on.
        return tuple(map(int, tensors[name].shape[::-1]))

    def read(name: str, spans: tuple[slice, ...] = ()) -> np.ndarray:
        array = _dequantise(path, tensors[name], spans)
        # llama.cpp stores the scale of a norm whole, HF's Gemma less one.
        return array - config.norm_offset if name.endswith("norm.weight") else array

    return Checkpoint(
        place=str(path),
        family=family,
        config=config,
        weights=family.GGUF,
        names=frozenset(tensors),
        shape=shape,
        read=read,
        tokenizer=_read_tokenizer(path, metadata),
    )


def _dequantise(path: Path, tensor: Any, spans: tuple[slice, ...] = ()) -> np.ndarray:
    """Read a rectangle of a tensor in float32.

    Raises:
      ValueError: where it is quantised in a way `gguf` cannot read.
    """
    import gguf

    # Rows of matrices are quantised by themselves, so other rows need not be read.
    rows, rest = tensor.data, spans
    if len(spans) > 1:
        rows, rest = tensor.data[spans[0]], (slice(None), *spans[1:])
    try:
        return gguf.quants.dequantize(rows, tensor.tensor_type)[rest]
    except NotImplementedError as error:
        raise ValueError(
            f"{path}: tensor {tensor.name!r} is quantised as {tensor.tensor_type.name}: {error}"
        ) from error


def describe_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what a GGUF file says of its model.

    Returns:
      The metadata, and the HF configuration that they and the tensors amount to.

    Raises:
      ValueError: as `open_gguf`, or where the file divides rotary frequencies by numbers of its
        own, which no HF configuration can say.
    """
    reader, metadata = _open(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "rope_freqs.weight" in tensors:
        raise ValueError(
            f"{path} divides rotary frequencies by its tensor rope_freqs.weight, which an HF "
            "config.json cannot say: edit the HF model that it was made of"
        )
    return metadata, _hf_values(path, _find_family(path, metadata), metadata, tensors)


def _open(path: Path) -> tuple[Any, dict[str, Any]]:
    """Open a file that is one whole model, whose tokenizer's metadata have their types."""
    reader, metadata = read_metadata(path)
    check_file_kind(path, metadata)
    return reader, metadata


def _find_family(path: Path, metadata: dict[str, Any]) -> ModuleType:
    """Find the family of a file's architecture; its families file must have a table `GGUF`."""
    arch = metadata.get("general.architecture")
    found = [families.find(name) for name in families.family_names()]
    supported = {
        getattr(family, "GGUF_ARCHITECTURE", family.__name__.rpartition(".")[2]): family
        for family in found
        if hasattr(family, "GGUF")
    }
    n_experts = metadata.get(f"{arch}.expert_count")
    told = {"model_type": arch, **({} if n_experts is None else {"num_experts": n_experts})}
    try:
        families.reject_linear_attention(told)
        families.reject_moe(told)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if arch not in supported:
        raise ValueError(
            f"{path} has architecture {arch!r}; GGUF files are read for {', '.join(supported)}"
        )
    return supported[arch]


def _hf_values(
    path: Path, family: ModuleType, metadata: dict[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """Translate metadata, and what only tensors tell, to an HF configuration."""
    architecture = metadata["general.architecture"]
    # Some tensors are configuration: divisors of rotary frequencies.
    factors = {
        name.removesuffix(".weight"): _dequantise(path, tensors[name]).tolist()
        for name in ("rope_factors_long.weight", "rope_factors_short.weight")
        if name in tensors
    }
    fields = metadata_fields(path, metadata | factors)
    check_tokenizer(fields)
    values = family.from_gguf(fields)
    finish_architecture(fields, architecture)
    # The head is a tensor of its own where there is one, as in llama.cpp.
    values["tie_word_embeddings"] = "output.weight" not in tensors
    if architecture == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in tensors
    return values


def _read_tokenizer(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    try:
        return tokenizer_from_metadata(metadata)
    except KeyError as error:
        raise ValueError(
            f"{path} has no {error} in its metadata; was it written for an old version of "
            "llama.cpp?"
        ) from error
    except Exception as error:  # the tokenizers package raises no other class
        raise ValueError(f"{path} has no usable tokenizer: {error}") from error
