"""OLMo 2 (2501.00656).

Llama with its norms behind attention and MLP instead of before them, and queries and keys
normalised over all heads.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.family import Weights
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS: Weights = {
    name: entry for name, entry in llama.WEIGHTS.items() if not name.endswith("layernorm.weight")
} | {
    "model.layers.{l}.self_attn.q_norm.weight": ("attn/q_all_heads_norm_scale", "(N H) -> N H"),
    "model.layers.{l}.self_attn.k_norm.weight": ("attn/k_all_heads_norm_scale", "(K H) -> K H"),
    "model.layers.{l}.post_attention_layernorm.weight": ("attn/post_norm_scale", "D -> D"),
    "model.layers.{l}.post_feedforward_layernorm.weight": ("mlp/post_norm_scale", "D -> D"),
}

TINY = {**llama.TINY, "model_type": "olmo2"}


def config(fields: Fields) -> DecoderConfig:
    """Read an Olmo2Config."""
    fields.expect("hidden_act", "silu")
    read = llama.llama_like_config(
        fields,
        "olmo2",
        P=2048,
        eps=1e-5,
        pre_norm=False,
        post_norm=True,
        qk_norm_all_heads=True,
        **llama.attention_biases(fields),
    )
    fields.finish()
    return read
