"""Gemma 3 (2503.19786), text alone.

Gemma 2 without soft caps, whose heads normalise queries and keys; five layers of six have a sliding
window and rotary positions of a base of their own.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import gemma2, llama, qwen3
from jaxedit.models.family import LAYERS_MOST, Weights, read_windows, window_width
from jaxedit.models.fields import Fields
from jaxedit.models.rope import Rope
from jaxedit.models.rope_config import rotary

PREFIX = gemma2.PREFIX

WEIGHTS: Weights = {**qwen3.WEIGHTS, **gemma2.WEIGHTS}

GGUF_ARCHITECTURE = "gemma3"  # llama.cpp's name of it
GGUF: Weights = {
    **qwen3.GGUF,
    "blk.{l}.post_attention_norm.weight": ("attn/post_norm_scale", "D -> D"),
    "blk.{l}.post_ffw_norm.weight": ("mlp/post_norm_scale", "D -> D"),
}

TINY = {
    **gemma2.TINY,
    "model_type": "gemma3_text",
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


def config(fields: Fields) -> DecoderConfig:
    """Read a Gemma3TextConfig."""
    fields.expect("attn_logit_softcapping", None)
    fields.expect("final_logit_softcapping", None)
    n_layers = fields.count("num_hidden_layers", most=LAYERS_MOST)
    period = fields.count("sliding_window_pattern", None) or 6  # where `layer_types` does not say
    with_window = [l for l in range(n_layers) if (l + 1) % period]
    H, P = fields.count("head_dim", 256), fields.count("max_position_embeddings", 131072)
    rope, window_rope = _ropes(fields, H, P)
    read = gemma2.gemma_like_config(
        fields,
        "gemma3_text",
        P=P,
        rope=rope,
        window_rope=window_rope,
        qk_norm=True,
        **read_windows(fields, with_window, window_width(fields)),
    )
    fields.finish(_sliding_window_pattern="transformers writes it, but does not read it")
    return read


def _ropes(fields: Fields, H: int, P: int) -> tuple[Rope, Rope]:
    """Read the rotary positions of layers without and with a window.

    transformers 5 has an entry of `rope_parameters` for each kind of layer; before, scaling was for
    layers without a window, and the base of the others `rope_local_base_freq`.
    """
    parameters = Fields(fields.mapping("rope_parameters"), "rope_parameters")
    old = {"rope_scaling": fields.mapping("rope_scaling")}
    ropes = []
    for kind, theta_name, theta, more in (
        ("full_attention", "rope_theta", 1e6, old),
        ("sliding_attention", "rope_local_base_freq", 1e4, {}),
    ):
        values = {"rope_parameters": parameters.mapping(kind), **more}
        given = fields.number(theta_name, None)
        values |= {} if given is None else {"rope_theta": given}
        ropes.append(rotary(Fields(values, f"{fields.what}, {kind}"), H, P, theta=theta))
    unknown = sorted(parameters.values.keys() - parameters.seen)
    if unknown:
        raise ValueError(f"rope_parameters has {unknown[:9]}; expected an entry for each attention")
    return ropes[0], ropes[1]


def from_gguf(fields: Fields) -> dict:
    """Translate llama.cpp's metadata to an HF configuration.

    Products of queries and keys are scaled by the width of a head, but of 62 layers (27B) by the
    width of the residual stream over the heads (src/models/gemma3.cpp).
    """
    values = llama.read_gguf(fields, "gemma3", "gemma3_text")
    D, N, H = (values[name] for name in ("hidden_size", "num_attention_heads", "head_dim"))
    fields.expect("gemma3.attention.sliding_window_pattern", 6)
    return values | {
        "query_pre_attn_scalar": D / N if values["num_hidden_layers"] == 62 else H,
        "sliding_window": fields.count("gemma3.attention.sliding_window"),
        "rope_local_base_freq": fields.number("gemma3.rope.freq_base_swa", 1e4),
    }
