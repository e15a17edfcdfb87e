"""Mistral (Jiang et al. 2023): Llama, in its first version with a sliding window in every layer.

Where the configuration has `layer_types`, they say which layers have the window. transformers then
computes the model as a Ministral.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.family import LAYERS_MOST, read_windows, window_width
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS = llama.WEIGHTS

TINY = {**llama.TINY, "model_type": "mistral"}


def config(fields: Fields) -> DecoderConfig:
    """Read a MistralConfig."""
    fields.expect("hidden_act", "silu")
    layers = range(fields.count("num_hidden_layers", most=LAYERS_MOST))
    windows = read_windows(fields, layers, window_width(fields))
    read = llama.llama_like_config(fields, "mistral", P=131072, **windows)
    fields.finish()
    return read
