"""Qwen 2 and 2.5.

Llama with biases on queries, keys and values, and sliding windows that most leave unused.
"""

from typing import Any

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.family import LAYERS_MOST, Weights, read_windows, window_width
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS = llama.WEIGHTS

# llama.cpp stores their rotary pairs as halves, as HF does.
_HALVES = {
    f"blk.{{l}}.attn_{part}.{kind}": llama.WEIGHTS[
        f"model.layers.{{l}}.self_attn.{part}_proj.{kind}"
    ]
    for part in "qk"
    for kind in ("weight", "bias")
}
GGUF: Weights = {**llama.GGUF, **_HALVES}

TINY = {**llama.TINY, "model_type": "qwen2"}


def config(fields: Fields) -> DecoderConfig:
    """Read a Qwen2Config."""
    read = qwen_like_config(fields, "qwen2", qkv_bias=True)
    fields.finish()
    return read


def qwen_like_config(
    fields: Fields, family: str, *, H: int | None = None, **switches: Any
) -> DecoderConfig:
    """Read what the configurations of Qwen 2 and 3 have in common.

    Layers from max_window_layers on have the sliding window.

    Args:
      fields: the configuration.
      family: whose it is.
      H: the width of a head; absent: as `llama_like_config` reads it.
      switches: what sets the family apart.
    """
    fields.expect("hidden_act", "silu")
    fields.expect("use_mrope", False)
    first = fields.count("max_window_layers", 28, least=0)
    layers = range(first, fields.count("num_hidden_layers", most=LAYERS_MOST))
    width, in_use = window_width(fields), fields.flag("use_sliding_window", False)
    windows = read_windows(fields, layers, width if in_use else None)
    return llama.llama_like_config(fields, family, P=32768, H=H, **windows, **switches)


def from_gguf(fields: Fields) -> dict:
    """Translate llama.cpp's metadata to an HF configuration."""
    return llama.read_gguf(fields, "qwen2", "qwen2")
