"""Qwen 3.

Llama whose heads normalise their queries and keys, with sliding windows that most leave unused.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama, qwen2
from jaxedit.models.family import Weights
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS: Weights = {
    **llama.WEIGHTS,
    "model.layers.{l}.self_attn.q_norm.weight": ("attn/q_norm_scale", "H -> H"),
    "model.layers.{l}.self_attn.k_norm.weight": ("attn/k_norm_scale", "H -> H"),
}

GGUF: Weights = {
    **qwen2.GGUF,
    "blk.{l}.attn_q_norm.weight": ("attn/q_norm_scale", "H -> H"),
    "blk.{l}.attn_k_norm.weight": ("attn/k_norm_scale", "H -> H"),
}

TINY = {**llama.TINY, "model_type": "qwen3", "head_dim": 12}


def config(fields: Fields) -> DecoderConfig:
    """Read a Qwen3Config."""
    bias = fields.flag("attention_bias", False)
    read = qwen2.qwen_like_config(
        fields, "qwen3", H=fields.count("head_dim", 128), qk_norm=True, qkv_bias=bias, out_bias=bias
    )
    fields.finish()
    return read


def from_gguf(fields: Fields) -> dict:
    """Translate llama.cpp's metadata to an HF configuration."""
    return llama.read_gguf(fields, "qwen3", "qwen3")
