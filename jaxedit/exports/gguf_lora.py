"""A LoRA adapter for llama.cpp (`--lora`): low-rank factors in a .gguf file.

To what a matrix makes of x llama.cpp adds (alpha / r) B A x. With ΔW_FD = u_FR v_RD, in x out, that
is A = uᵀ [r, in] and B = vᵀ [out, r], of every family: llama.cpp stores GPT-2's matrices as
out x in as well, and permutes none of an MLP. alpha is one number of the file, r each matrix's own
number of rows: all have the same r, padded with zeros, and alpha is that r.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxedit.distributed import is_first_process
from jaxedit.exports.low_rank import factors_by_layer
from jaxedit.exports.written import ExportOptions, WrittenWeight
from jaxedit.files import partial_path
from jaxedit.models.model import Model
from jaxedit.study.edited import EditedModel

FILE = "adapter.gguf"

# Family -> llama.cpp's architecture. It has a name for gptj too, but does not convert or run it.
ARCHITECTURES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "granite": "granite",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "llama": "llama",
    "mistral": "llama",
    "olmo2": "olmo2",
    "phi": "phi2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}


def write_gguf_lora(
    edited: EditedModel, folder: Path, options: ExportOptions
) -> list[WrittenWeight]:
    """Write the sum of a model's edits as a LoRA adapter for llama.cpp.

    Where the base is a .gguf file, the adapter is for that very file.

    Args:
      edited: the model; its base weights are not read.
      folder: where to write; there, and empty, in the first process.
      options: dtype of the factors, the highest rank.

    Raises:
      ValueError: where llama.cpp does not run the base's family, has no name for a weight that is
        edited, or an edit is not finite.
      OSError: where the file cannot be written as a whole; nothing is left of it.
    """
    architecture = _architecture_of(edited)
    layers = factors_by_layer(edited.model.metadata.history, options.max_rank, options.dtype)
    arrays: dict[str, np.ndarray] = {}
    written = []
    for factors in layers:
        name = _tensor_name(edited.model, architecture, factors.weight, factors.layer)
        arrays[f"{name}.lora_a"] = factors.u_FR.T
        arrays[f"{name}.lora_b"] = factors.v_RD.T
        written.append(WrittenWeight(name, factors.layer, factors.rank, factors.error))
    if is_first_process():
        rank = layers[0].u_FR.shape[1]
        _write_whole(folder / FILE, architecture, arrays, alpha=float(rank))
    return written


def _architecture_of(edited: EditedModel) -> str:
    """Return what llama.cpp calls the base's family.

    Raises:
      ValueError: where it does not run it.
    """
    family = edited.model.config.family
    if family not in ARCHITECTURES:
        raise ValueError(
            f"llama.cpp does not run models of the family {family}, which {edited.source} is of, "
            f"but of {', '.join(ARCHITECTURES)}; use --format=peft or --format=hf"
        )
    return ARCHITECTURES[family]


def _tensor_name(model: Model, architecture: str, weight: str, layer: int) -> str:
    """Return what llama.cpp calls a layer's weight, e.g. "blk.5.ffn_down.weight".

    Raises:
      ValueError: where it has no name for it.
    """
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], model.config.L)
    hf_name = model.metadata.tensor_names[weight][0].format(l=layer)
    name = names.get_name(hf_name, try_suffixes=(".weight",))
    if name is None:
        raise ValueError(
            f"the edits change {hf_name}, for which llama.cpp's {architecture} has no name; use "
            "--format=peft or --format=hf"
        )
    return name


def _write_whole(
    path: Path, architecture: str, arrays: Mapping[str, np.ndarray], alpha: float
) -> None:
    """Write an adapter so that it is on the disk whole, or not at all.

    Args:
      path: of the file.
      architecture: llama.cpp's name of the base's family.
      arrays: tensor name -> matrix, as GGUF's writer takes them: it names the dimensions in the
        file from the innermost one on.
      alpha: see the module.

    Raises:
      OSError: where there is no room for it.
    """
    import gguf

    # What the file says of itself, and its matrices. NumPy has no bfloat16 of its own: as bytes.
    partial = partial_path(path)
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, array in arrays.items():
        in_order = np.ascontiguousarray(array)
        if array.dtype == jnp.bfloat16:
            as_bytes = in_order.view(np.uint8)
            writer.add_tensor(name, as_bytes, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, in_order)

    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _check_whole(partial, arrays)
    except OSError as error:
        with contextlib.suppress(OSError):
            writer.close()
        partial.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({error}): make room on the disk") from error
    partial.replace(path)


def _check_whole(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that a file is on the disk with every matrix.

    GGUF's writer writes by NumPy's `tofile`, which says nothing where the last bytes of an array
    find no room.

    Raises:
      OSError: where a part is missing.
    """
    import gguf

    with path.open("rb") as file:
        os.fsync(file.fileno())
    try:
        found = {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}
    except ValueError:  # the file ends before its last matrix does
        found = {}
    if found != {name: array.tobytes() for name, array in arrays.items()}:
        raise OSError("a part of it is missing")
