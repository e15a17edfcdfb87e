"""A LoRA adapter as the peft library writes it (adapter_config.json, adapter_model.safetensors).

peft adds (lora_alpha / r) B A x to what a module makes of x. With ΔW_FD = u_FR v_RD, in x out, that
is A = uᵀ [r, in], B = vᵀ [out, r] and lora_alpha = r. Edits of several steps stand side by side in
r; all layers have the same r, since servers read `r` alone.
"""

import json
from pathlib import Path

import numpy as np

from jaxedit.distributed import is_first_process
from jaxedit.exports.hf_base import require_base
from jaxedit.exports.low_rank import factors_by_layer
from jaxedit.exports.written import ExportOptions, WrittenWeight
from jaxedit.files import to_safetensors, write_atomic
from jaxedit.study.edited import EditedModel

PREFIX = "base_model.model."  # what peft puts before a module's name


def write_peft(edited: EditedModel, folder: Path, options: ExportOptions) -> list[WrittenWeight]:
    """Write the sum of a model's edits as a LoRA adapter.

    Args:
      edited: the model; its base weights are not read.
      folder: where to write; there, and empty, in the first process.
      options: dtype of the factors, the highest rank, the HF base.

    Raises:
      ValueError: where the HF base is not known, or an edit is not finite.
    """
    base = require_base(edited, options.base, "peft")
    layers = factors_by_layer(edited.model.metadata.history, options.max_rank, options.dtype)

    # The factors under peft's names, and which modules they belong to.
    arrays: dict[str, np.ndarray] = {}
    written, is_fan_in_fan_out = [], False
    for factors in layers:
        pattern, layout = edited.model.metadata.tensor_names[factors.weight]
        name = pattern.format(l=factors.layer)
        module = name.removesuffix(".weight")
        arrays[f"{PREFIX}{module}.lora_A.weight"] = factors.u_FR.T
        arrays[f"{PREFIX}{module}.lora_B.weight"] = factors.v_RD.T
        hf_side, our_side = layout.split(" -> ")
        is_fan_in_fan_out = hf_side == our_side  # Conv1D stores in x out, as we do
        written.append(WrittenWeight(name, factors.layer, factors.rank, factors.error))

    rank = layers[0].u_FR.shape[1]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [weight.name.removesuffix(".weight") for weight in written],
        "fan_in_fan_out": is_fan_in_fan_out,
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    if is_first_process():
        content = to_safetensors(arrays, {"format": "pt"})
        write_atomic(folder / "adapter_model.safetensors", content)
        write_atomic(folder / "adapter_config.json", json.dumps(config, indent=2).encode())
    return written
