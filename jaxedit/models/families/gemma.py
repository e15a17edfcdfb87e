"""Gemma 1 (Mesnard et al. 2024).

Llama with scaled embeddings, norm scales stored less one, and a gate through GELU.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS = llama.WEIGHTS

TINY = {**llama.TINY, "model_type": "gemma", "head_dim": 12}


def config(fields: Fields) -> DecoderConfig:
    """Read a GemmaConfig."""
    # The first releases say gelu and mean its approximation.
    fields.expect("hidden_act", "gelu_pytorch_tanh", "gelu")
    fields.expect("hidden_activation", "gelu_pytorch_tanh", None)
    fields.expect("use_bidirectional_attention", False, None)
    bias = fields.flag("attention_bias", False)
    read = llama.llama_like_config(
        fields,
        "gemma",
        P=8192,
        H=fields.count("head_dim", 256),
        activation="gelu_tanh",
        tied=True,
        embed_scale=fields.count("hidden_size") ** 0.5,
        norm_offset=1.0,
        qkv_bias=bias,
        out_bias=bias,
    )
    fields.finish()
    return read
