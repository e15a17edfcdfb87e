"""Qwen 2 and 2.5.

Llama with biases on queries, keys and values, and sliding windows that most leave unused.
"""

from typing import Any

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.family import LAYERS_MOST, window
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS = llama.WEIGHTS

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
    slides = window(fields, layers=layers, active=fields.flag("use_sliding_window", False))
    return llama.llama_like_config(fields, family, P=32768, H=H, window=slides, **switches)
