"""Granite 3 without experts (IBM).

Llama whose embedding, attention, residual stream and logits are multiplied by constants.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS = llama.WEIGHTS

TINY = {
    **llama.TINY,
    "model_type": "granite",
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
}


def config(fields: Fields) -> DecoderConfig:
    """Read a GraniteConfig."""
    fields.expect("hidden_act", "silu")
    fields.expect("mlp_bias", False)
    read = llama.llama_like_config(
        fields,
        "granite",
        P=2048,
        embed_scale=fields.number("embedding_multiplier", 1.0),
        attn_scale=fields.number("attention_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logit_scale=1 / fields.number("logits_scaling", 1.0),
        **llama.attention_biases(fields),
    )
    fields.finish()
    return read
