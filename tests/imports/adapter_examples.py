"""LoRA adapters made by the peft library itself, on HF torch models."""

from pathlib import Path
from typing import Any

import numpy as np
from reference.models import hf_model, token_rows

import jaxedit

FAMILIES = ("gpt2", "gptj", "llama", "qwen2")

# Of each family: the MLP's second module, and one of attention (GPT-2's holds three parameters).
MLP = {
    "gpt2": "mlp.c_proj",
    "gptj": "mlp.fc_out",
    "llama": "mlp.down_proj",
    "qwen2": "mlp.down_proj",
}
ATTENTION = {"gpt2": "c_attn", "gptj": "q_proj", "llama": "k_proj", "qwen2": "v_proj"}


def write_adapter(directory: Path, out: Path, seed: int = 0, size: float = 0.2, **lora: Any):
    """Write a random adapter of a checkpoint with peft; return the peft model.

    Args:
      directory: the checkpoint.
      out: the adapter's folder.
      seed: of the factors.
      size: standard deviation of the factors.
      **lora: of peft's LoraConfig; every linear module but the head unless told.
    """
    import peft
    import torch

    is_safe = lora.pop("safe_serialization", True)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **lora}
    )
    model = peft.get_peft_model(hf_model(directory), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(out, safe_serialization=is_safe)
    return model.eval()


def rows(vocab_size: int) -> np.ndarray:
    """Return the tokens on which models are compared."""
    return token_rows(vocab_size, rows=2, length=17)


def logits(model: jaxedit.Model) -> np.ndarray:
    """Return our logits of `rows`."""
    return np.asarray(jaxedit.logits(model, rows(model.config.V)))
