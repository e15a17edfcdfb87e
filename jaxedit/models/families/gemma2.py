"""Gemma 2 (2408.00118).

Gemma 1 with norms after attention and MLP too, soft caps, and a sliding window in every second
layer.
"""

from typing import Any

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.family import LAYERS_MOST, Weights, read_windows, window_width
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS: Weights = {
    **llama.WEIGHTS,
    "model.layers.{l}.post_attention_layernorm.weight": ("attn/post_norm_scale", "D -> D"),
    "model.layers.{l}.pre_feedforward_layernorm.weight": ("mlp/norm_scale", "D -> D"),
    "model.layers.{l}.post_feedforward_layernorm.weight": ("mlp/post_norm_scale", "D -> D"),
}

TINY = {
    **llama.TINY,
    "model_type": "gemma2",
    "head_dim": 12,
    "query_pre_attn_scalar": 9,
    "sliding_window": 8,
}


def config(fields: Fields) -> DecoderConfig:
    """Read a Gemma2Config."""
    n_layers = fields.count("num_hidden_layers", most=LAYERS_MOST)
    windows = read_windows(fields, range(0, n_layers, 2), window_width(fields))
    read = gemma_like_config(
        fields,
        "gemma2",
        P=8192,
        attn_softcap=_cap(fields, "attn_logit_softcapping", 50.0),
        logit_softcap=_cap(fields, "final_logit_softcapping", 30.0),
        **windows,
    )
    fields.finish(sliding_window_size="an older name of sliding_window, beside it")
    return read


def _cap(fields: Fields, name: str, default: float) -> float | None:
    """Read a soft cap; null: there is none."""
    return fields.number(name, None) if name in fields.values else default


def gemma_like_config(fields: Fields, family: str, **switches: Any) -> DecoderConfig:
    """Read what the configurations of Gemma 2 and 3 have in common.

    Args:
      fields: the configuration.
      family: whose it is.
      switches: what sets the family apart, and the positions P.
    """
    fields.expect("hidden_act", "gelu_pytorch_tanh")
    fields.expect("hidden_activation", "gelu_pytorch_tanh")
    fields.expect("use_bidirectional_attention", False, None)
    return llama.llama_like_config(
        fields,
        family,
        H=fields.count("head_dim", 256),
        activation="gelu_tanh",
        tied=True,
        embed_scale=fields.count("hidden_size") ** 0.5,
        norm_offset=1.0,
        attn_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        post_norm=True,
        **llama.attention_biases(fields),
        **switches,
    )
