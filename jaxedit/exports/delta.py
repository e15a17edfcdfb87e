"""The changes themselves, written out under HF's names, for whatever reads safetensors.

delta.safetensors holds one array for each changed weight, in that weight's own HF orientation: the
edited weight is the base's plus it.
"""

from pathlib import Path

import einops
import numpy as np

from jaxedit.distributed import is_first_process
from jaxedit.exports.hf_base import HFBase, require_base
from jaxedit.exports.low_rank import group_by_layer, sum_dense
from jaxedit.exports.written import ExportOptions, WrittenWeight, round_to
from jaxedit.files import to_safetensors, write_atomic
from jaxedit.study.edited import EditedModel

FILE = "delta.safetensors"


def write_delta(edited: EditedModel, folder: Path, options: ExportOptions) -> list[WrittenWeight]:
    """Write the sum of a model's edits as whole arrays.

    Args:
      edited: the model; its base weights are not read.
      folder: where to write; there, and empty, in the first process.
      options: dtype of the arrays, the HF base.

    Raises:
      ValueError: where the HF base is not known, or an edit is not finite.
    """
    require_base(edited, options.base, "delta")
    arrays, written = {}, []
    for (weight, layer), deltas in group_by_layer(edited.model.metadata.history).items():
        pattern, layout = edited.model.metadata.tensor_names[weight]
        hf_side, our_side = layout.split(" -> ")
        name = pattern.format(l=layer)
        exact_FD = sum_dense(deltas)
        rounded_FD = round_to(exact_FD, options.dtype, name)
        arrays[name] = einops.rearrange(rounded_FD, f"{our_side} -> {hf_side}")

        size = np.linalg.norm(exact_FD)
        missed = np.linalg.norm(exact_FD - rounded_FD.astype(np.float64))
        error = float(missed / size) if size else 0.0
        written.append(WrittenWeight(name, layer, None, error))
    if is_first_process():
        write_atomic(folder / FILE, to_safetensors(arrays, {"format": "pt"}))
    return written


def torch_loader(base: HFBase, place: str) -> str:
    """Return the Python lines that add the changes to the base in torch.

    Args:
      base: with a name.
      place: the folder.
    """
    revision = f", revision={base.revision!r}" if base.revision else ""
    return f"""\
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base.name!r}{revision})
model = AutoModelForCausalLM.from_pretrained({base.name!r}{revision}, dtype=torch.float32)
weights = model.state_dict()
for name, delta in load_file({f"{place}/{FILE}"!r}).items():
    weights[name] += delta.float()
"""
