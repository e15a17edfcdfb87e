"""A whole HF checkpoint of an edited model, as `from_pretrained` and most servers read it.

An edited weight is W + Δ, where Δ is the float32 sum of all edits and W the base's weight in
float32, rounded once to the checkpoint's dtype. What rounding leaves of an edit is the relative
Frobenius error

    |(round(W + Δ) - round(W)) - Δ| / |Δ|

All other tensors are the base's, bit for bit, unless another dtype is asked for than the base has.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import einops
import jax.numpy as jnp
import numpy as np

from jaxedit.distributed import broadcast_flag, is_first_process
from jaxedit.edits.apply import without_edits
from jaxedit.exports.base_tensors import STORED_DTYPES, BaseTensor, base_dtype, base_tensors
from jaxedit.exports.hf_config import write_config
from jaxedit.exports.low_rank import group_by_layer
from jaxedit.exports.measured import ExportNumbers, measure_as
from jaxedit.exports.safetensors_stream import TensorHeader, in_file_order, stream_safetensors
from jaxedit.exports.written import ExportOptions, WrittenWeight, round_to
from jaxedit.files import write_atomic
from jaxedit.mesh import to_host
from jaxedit.models.load import load, resolve_path
from jaxedit.models.model import Model
from jaxedit.study.edited import EditedModel

MAX_SHARD_BYTES = 5 * 10**9  # as transformers writes them
ERROR_TO_WARN_OF = 0.05
_FLOATS = {"F64", "F32", "F16", "BF16"}  # tensors of weights; others are masks and counters


class EditedTensor(NamedTuple):
    """A tensor that edits change: which layer of which parameter, as `jaxedit.edits` names it."""

    weight: str
    layer: int


def default_dtype(edited: EditedModel) -> str:
    """Return the dtype that a checkpoint gets unless another is asked for.

    It is the one that the base's own files have, as whoever exchanges the one for the other
    expects it; of a .gguf file, whose weights are dequantised, float32.

    Raises:
      ValueError: where the base is not there any more.
    """
    path = resolve_path(edited.source)
    if path.suffix == ".gguf":
        return "float32"
    return base_dtype(edited.model, base_tensors(edited.model, path))


def write_hf(
    edited: EditedModel,
    folder: Path,
    options: ExportOptions,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[WrittenWeight]:
    """Write an edited model as a whole HF checkpoint.

    One tensor at a time is in memory. On a mesh the change of one layer at a time is gathered.

    Args:
      edited: the model; its base is read from where it was loaded.
      folder: to write to; other files there stay.
      options: `dtype` is that of all tensors; where it is the base's own, unedited ones are copied.
      max_shard_bytes: of one file, unless a single tensor is larger.

    Returns:
      Each edited weight with the share of its change that rounding takes.

    Raises:
      ValueError: where the base is not there any more, or the dtype cannot hold a weight.
    """
    path = resolve_path(edited.source)
    tensors = base_tensors(edited.model, path)
    edits = edited_tensors(edited.model)
    stays = options.dtype == base_dtype(edited.model, tensors)
    written: list[WrittenWeight] = []

    def produce(name: str) -> np.ndarray:
        """Read a tensor of the base and make of it the one that is written."""
        tensor = tensors[name].read()
        if name in edits:
            delta = _change(edited.model, edits[name])
            tensor, error = _add_change(tensor, delta, options.dtype, name)
            written.append(WrittenWeight(name, edits[name].layer, None, error))
            return tensor
        if stays or tensors[name].header.dtype not in _FLOATS:
            return tensor
        return round_to(tensor, options.dtype, name)

    headers = {
        name: _written_header(tensor, stays and name not in edits, options.dtype)
        for name, tensor in tensors.items()
    }
    gathered = {name for name, tensor in tensors.items() if tensor.is_gathered or name in edits}
    if is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
    _write_shards(folder, headers, produce, max_shard_bytes, gathered)
    if is_first_process():
        write_config(path, edited.model.metadata.tokenizer, options.dtype, folder)
    written.sort(key=lambda weight: weight.layer)
    _warn_of_rounding(written, options.dtype)
    return written


def measure_written(folder: Path, edited: EditedModel) -> ExportNumbers:
    """Measure what `write_hf` wrote: P(target_new) of the facts and the perplexity, after rounding.

    The checkpoint is loaded on the edited model's mesh; computations are float32, on the weights
    as they were rounded.

    Args:
      folder: of the checkpoint.
      edited: the model that was written.
    """
    broadcast_flag(True)  # all wait for the first process, which wrote
    return measure_as(load(str(folder), mesh=edited.model.mesh, dtype="float32"), edited)


def rounded_model(edited: EditedModel, dtype: str) -> Model:
    """Return the model that `write_hf` writes, rounded as there, from the edited model alone.

    Args:
      edited: its weights in float32.
      dtype: of the checkpoint.
    """
    model = without_edits(edited.model)
    base = dict(model.base)
    if dtype != default_dtype(edited):
        base = {name: array.astype(dtype).astype(jnp.float32) for name, array in base.items()}
    for tensor in edited_tensors(edited.model).values():
        weight, layer = tensor
        slot = edited.model.overlay.slot[weight][layer]
        w_FD = edited.model.base[weight][layer] + edited.model.overlay.delta[weight][slot]
        rounded_FD = w_FD.astype(dtype).astype(jnp.float32)
        base[weight] = base[weight].at[layer].set(rounded_FD)
    return dataclasses.replace(model, base=base)


def edited_tensors(model: Model) -> dict[str, EditedTensor]:
    """Find the tensors that a model's edits change: HF's name -> which they are.

    Raises:
      ValueError: where an edit is not finite.
    """
    names = model.metadata.tensor_names
    return {
        names[weight][0].format(l=layer): EditedTensor(weight, layer)
        for weight, layer in group_by_layer(model.metadata.history)
    }


def _change(model: Model, edit: EditedTensor) -> np.ndarray:
    """Gather the float32 sum of all edits of one tensor, in HF's orientation."""
    slot = int(model.overlay.slot[edit.weight][edit.layer])
    hf_side, our_side = model.metadata.tensor_names[edit.weight][1].split(" -> ")
    delta_FD = to_host(model.overlay.delta[edit.weight][slot])
    return einops.rearrange(delta_FD, f"{our_side} -> {hf_side}")


def _add_change(
    tensor: np.ndarray, delta: np.ndarray, dtype: str, name: str
) -> tuple[np.ndarray, float]:
    """Add a change to a tensor in float32 and round once.

    Returns:
      The rounded sum, and the error of the change that is left: see the module.
    """
    base = tensor.astype(np.float32)
    rounded = round_to(base + delta, dtype, name)
    left = rounded.astype(np.float64) - round_to(base, dtype, name).astype(np.float64)
    size = np.linalg.norm(delta.astype(np.float64))
    return rounded, float(np.linalg.norm(left - delta) / size) if size else 0.0


def _written_header(tensor: BaseTensor, is_copied: bool, dtype: str) -> TensorHeader:
    """Announce a tensor as it is written."""
    if is_copied or tensor.header.dtype not in _FLOATS:
        return tensor.header
    return tensor.header._replace(dtype=STORED_DTYPES[dtype])


def _write_shards(
    folder: Path,
    headers: Mapping[str, TensorHeader],
    produce: Callable[[str], np.ndarray],
    max_shard_bytes: int,
    gathered: set[str],
) -> None:
    """Write tensors to one file, or to several with an index; the first process does.

    The others only take part in gathering, in the same order.

    Args:
      folder: to write to.
      headers: HF's name -> the tensor, under its name in the file.
      produce: HF's name -> the tensor's array.
      max_shard_bytes: of one file.
      gathered: the tensors that all processes must produce.
    """
    names = {header.name: name for name, header in headers.items()}
    import huggingface_hub  # slow to import

    split = huggingface_hub.split_state_dict_into_shards_factory(
        {header.name: header for header in headers.values()},
        get_storage_size=lambda header: header.n_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, stored in split.filename_to_tensors.items():
        of_file = in_file_order([headers[names[name]] for name in stored])
        if is_first_process():
            stream_safetensors(folder / file, of_file, lambda name: produce(names[name]))
            continue
        for header in of_file:
            if names[header.name] in gathered:
                produce(names[header.name])
    if split.is_sharded and is_first_process():
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True)
        write_atomic(folder / "model.safetensors.index.json", f"{text}\n".encode())


def _warn_of_rounding(written: list[WrittenWeight], dtype: str) -> None:
    """Warn where rounding takes more of an edit than may be passed over in silence."""
    lossy = [weight for weight in written if weight.error > ERROR_TO_WARN_OF]
    if lossy and is_first_process():
        worst = max(weight.error for weight in lossy)
        logging.getLogger("jaxedit").warning(
            "%s rounds up to %.0f %% of the edits away (layers %s): --dtype=float32 keeps them, "
            "and so does --format=peft",
            dtype,
            100 * worst,
            ", ".join(str(weight.layer) for weight in lossy),
        )
