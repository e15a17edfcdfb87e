"""Phi 3, 3.5 and 4 (2404.14219, 2412.08905).

Llama with queries, keys and values in one tensor, gate and up in another, and LongRoPE.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.families import llama
from jaxedit.models.family import Weights, head_width, window_width
from jaxedit.models.fields import Fields
from jaxedit.models.rope import Rope
from jaxedit.models.rope_config import rotary

PREFIX = llama.PREFIX

_FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "o_proj.bias", "inv_freq")

WEIGHTS: Weights = {
    name: entry for name, entry in llama.WEIGHTS.items() if not any(part in name for part in _FUSED)
} | {
    "model.layers.{l}.self_attn.qkv_proj.weight": (
        "attn/w_q attn/w_k attn/w_v",
        "(n H) D -> D n H",
    ),
    "model.layers.{l}.mlp.gate_up_proj.weight": ("mlp/w_gate mlp/w_up", "(c F) D -> c D F"),
}

GGUF: Weights = {
    "blk.{l}.attn_qkv.weight": WEIGHTS["model.layers.{l}.self_attn.qkv_proj.weight"],
    "blk.{l}.ffn_up.weight": WEIGHTS["model.layers.{l}.mlp.gate_up_proj.weight"],
    # read as configuration
    "rope_factors_long.weight": None,
    "rope_factors_short.weight": None,
} | {
    name: entry
    for name, entry in llama.GGUF.items()
    if not any(part in name for part in ("_q.", "_k.", "_v.", "ffn_up", "ffn_gate", ".bias"))
}

# Code beside the first checkpoints, from before transformers had it.
OWN_CODE = {
    "configuration_phi3.Phi3Config",
    "modeling_phi3.Phi3ForCausalLM",
    "Xenova/gpt-4o",  # a tokenizer's, which the checkpoint has itself
}

TINY = {**llama.TINY, "model_type": "phi3", "pad_token_id": 0}


def config(fields: Fields) -> DecoderConfig:
    """Read a Phi3Config."""
    fields.expect("hidden_act", "silu")
    fields.expect("attention_bias", False)
    fields.expect("mlp_bias", False)
    fields.expect("lm_head_bias", False)
    fields.expect("full_attn_mod", 1)
    P = fields.count("max_position_embeddings", 4096)
    read = llama.llama_like_config(
        fields,
        "phi3",
        P=P,
        eps=1e-5,
        rope=_rope(fields, P),
        window=window_width(fields, None),
    )
    fields.finish(
        embd_pdrop="training only",
        resid_pdrop="training only",
        auto_map="OWN_CODE",
        interpolate_factor="how training went, not what is computed",
    )
    return read


def _rope(fields: Fields, P: int) -> Rope:
    """Read rotary positions: LongRoPE under its three names, and the share of a head.

    The scaling of transformers 4 goes before that of transformers 5.
    """
    D, N = fields.count("hidden_size"), fields.count("num_attention_heads")
    scaling = fields.mapping("rope_scaling") or fields.mapping("rope_parameters")
    if (scaling.get("rope_type") or scaling.get("type")) in ("su", "yarn"):
        scaling = {**scaling, "rope_type": "longrope"}
    values = {
        "rope_parameters": scaling,
        "original_max_position_embeddings": fields.count("original_max_position_embeddings", 4096),
    }
    for name in ("rope_theta", "partial_rotary_factor"):
        given = fields.number(name, None)
        values |= {} if given is None else {name: given}
    H = head_width(fields, D, N, N)
    return rotary(Fields(values, fields.what), H, P, shares=("partial_rotary_factor",))


def from_gguf(fields: Fields) -> dict:
    """Translate llama.cpp's metadata to an HF configuration.

    `rope_factors_long` and `rope_factors_short` are the tensors of these names. In these files they
    are what makes rotary positions LongRoPE's.
    """
    rotated = fields.count("phi3.rope.dimension_count", None)
    plain = {name: value for name, value in fields.values.items() if "dimension_count" not in name}
    common = Fields(plain, fields.what)
    values = llama.read_gguf(common, "phi3", "phi3")
    fields.seen |= common.seen
    H = values.pop("head_dim")
    factors = {
        f"{name}_factor": fields.sequence(f"rope_factors_{name}", float, default=None)
        for name in ("short", "long")
    }
    if all(factors.values()):
        attention_factor = fields.number("phi3.rope.scaling.attn_factor", 1.0)
        values["rope_scaling"] = {
            "rope_type": "longrope",
            "attention_factor": attention_factor,
            **factors,
        }
    return values | {
        "partial_rotary_factor": (rotated or H) / H,
        "original_max_position_embeddings": fields.count(
            "phi3.rope.scaling.original_context_length", values["max_position_embeddings"]
        ),
        "sliding_window": fields.count("phi3.attention.sliding_window", 0, least=0) or None,
    }
