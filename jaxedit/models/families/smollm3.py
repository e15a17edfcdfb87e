"""SmolLM 3: Llama with no rotary positions in every fourth layer (2501.18795)."""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.family import LAYERS_MOST, read_windows, window_width
from jaxedit.models.fields import Fields

PREFIX = llama.PREFIX

WEIGHTS = llama.WEIGHTS

TINY = {
    **llama.TINY,
    "model_type": "smollm3",
    "no_rope_layer_interval": 2,
    "pad_token_id": 0,
}


def config(fields: Fields) -> DecoderConfig:
    """Read a SmolLM3Config."""
    fields.expect("hidden_act", "silu")
    fields.expect("mlp_bias", False)
    unrotated = _unrotated_layers(fields)
    width, in_use = window_width(fields, None), fields.flag("use_sliding_window", False)
    read = llama.llama_like_config(
        fields,
        "smollm3",
        P=32768,
        tied=True,
        theta=2e6,
        unrotated_layers=unrotated,
        **llama.attention_biases(fields),
        **read_windows(fields, unrotated, width if in_use else None),
    )
    fields.finish(
        max_window_layers="layer_types say which layers have a window",
        pretraining_tp="how training was split, not what is computed",
    )
    return read


def _unrotated_layers(fields: Fields) -> tuple[int, ...]:
    """Read the layers without rotary positions: 0 in `no_rope_layers`, or every so many.

    Raises:
      ValueError: where the list is of other numbers, or shorter than there are layers.
    """
    n_layers = fields.count("num_hidden_layers", most=LAYERS_MOST)
    interval = fields.count("no_rope_layer_interval", 4)
    given = fields.sequence("no_rope_layers", int, default=None)
    if given is None:
        given = [int((l + 1) % interval != 0) for l in range(n_layers)]
    if len(given) < n_layers or not set(given) <= {0, 1}:
        raise ValueError(
            f"{fields.what} has no_rope_layers={given[:9]} of {len(given)} numbers for {n_layers} "
            "layers; expected a 0 or 1 for each"
        )
    return tuple(l for l in range(n_layers) if not given[l])
