"""Mistral (Jiang et al. 2023): Llama, in its first version with a sliding window in every layer."""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.family import window_width
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS = llama.WEIGHTS

TINY = {**llama.TINY, "model_type": "mistral"}


def config(fields: Fields) -> DecoderConfig:
    """Read a MistralConfig."""
    fields.expect("hidden_act", "silu")
    read = llama.llama_like_config(fields, "mistral", P=131072, window=window_width(fields))
    fields.finish(layer_types="the window is in every layer, whatever they say")
    return read
