"""Llama 1 to 3 and what shares its form, SmolLM2 among them.

RMS norm, gated MLP, grouped keys and values, rotary positions.
"""

from typing import Any

from jaxedit.models.config import DecoderConfig
from jaxedit.models.family import LAYERS_MOST, Weights, head_width
from jaxedit.models.fields import Fields
from jaxedit.models.rope_config import rotary

PREFIX = "model."

WEIGHTS: Weights = {
    "model.embed_tokens.weight": ("embed/tokens", "V D -> V D"),
    "model.layers.{l}.input_layernorm.weight": ("attn/norm_scale", "D -> D"),
    "model.layers.{l}.self_attn.q_proj.weight": ("attn/w_q", "(N H) D -> D N H"),
    "model.layers.{l}.self_attn.k_proj.weight": ("attn/w_k", "(K H) D -> D K H"),
    "model.layers.{l}.self_attn.v_proj.weight": ("attn/w_v", "(K H) D -> D K H"),
    "model.layers.{l}.self_attn.o_proj.weight": ("attn/w_o", "D (N H) -> N H D"),
    "model.layers.{l}.self_attn.q_proj.bias": ("attn/b_q", "(N H) -> N H"),
    "model.layers.{l}.self_attn.k_proj.bias": ("attn/b_k", "(K H) -> K H"),
    "model.layers.{l}.self_attn.v_proj.bias": ("attn/b_v", "(K H) -> K H"),
    "model.layers.{l}.self_attn.o_proj.bias": ("attn/b_o", "D -> D"),
    "model.layers.{l}.post_attention_layernorm.weight": ("mlp/norm_scale", "D -> D"),
    "model.layers.{l}.mlp.gate_proj.weight": ("mlp/w_gate", "F D -> D F"),
    "model.layers.{l}.mlp.up_proj.weight": ("mlp/w_up", "F D -> D F"),
    "model.layers.{l}.mlp.down_proj.weight": ("mlp/w_down", "D F -> F D"),
    "model.norm.weight": ("final/norm_scale", "D -> D"),
    "lm_head.weight": ("head/w", "V D -> D V"),
    # computed; saved by old versions of transformers
    "model.layers.{l}.self_attn.rotary_emb.inv_freq": None,
}

# llama.cpp stores rotary pairs as neighbours; HF, and the decoder, as halves.
GGUF: Weights = {
    "token_embd.weight": ("embed/tokens", "V D -> V D"),
    "blk.{l}.attn_norm.weight": ("attn/norm_scale", "D -> D"),
    "blk.{l}.attn_q.weight": ("attn/w_q", "(N h two) D -> D N (two h)"),
    "blk.{l}.attn_k.weight": ("attn/w_k", "(K h two) D -> D K (two h)"),
    "blk.{l}.attn_v.weight": ("attn/w_v", "(K H) D -> D K H"),
    "blk.{l}.attn_output.weight": ("attn/w_o", "D (N H) -> N H D"),
    "blk.{l}.attn_q.bias": ("attn/b_q", "(N h two) -> N (two h)"),
    "blk.{l}.attn_k.bias": ("attn/b_k", "(K h two) -> K (two h)"),
    "blk.{l}.attn_v.bias": ("attn/b_v", "(K H) -> K H"),
    "blk.{l}.attn_output.bias": ("attn/b_o", "D -> D"),
    "blk.{l}.ffn_norm.weight": ("mlp/norm_scale", "D -> D"),
    "blk.{l}.ffn_gate.weight": ("mlp/w_gate", "F D -> D F"),
    "blk.{l}.ffn_up.weight": ("mlp/w_up", "F D -> D F"),
    "blk.{l}.ffn_down.weight": ("mlp/w_down", "D F -> F D"),
    "output_norm.weight": ("final/norm_scale", "D -> D"),
    "output.weight": ("head/w", "V D -> D V"),
    "rope_freqs.weight": None,  # read as configuration: rope_factors
}

TINY = dict(
    model_type="llama",
    hidden_size=32,
    intermediate_size=72,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=3,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    vocab_size=96,
)


def config(fields: Fields) -> DecoderConfig:
    """Read a LlamaConfig."""
    fields.expect("hidden_act", "silu")
    fields.expect("mlp_bias", False)
    read = llama_like_config(fields, "llama", P=2048, **attention_biases(fields))
    fields.finish(
        max_sequence_length="the same as max_position_embeddings; Llama 1 has it",
        pretraining_tp="how training was split, not what is computed",
        rope_interleaved="a note of the exporter; HF weights hold rotary pairs as halves",
        is_llama_config="a note of the exporter",
    )
    return read


def attention_biases(fields: Fields) -> dict[str, Any]:
    """Read whether all of attention's projections have biases, as arguments of `DecoderConfig`."""
    bias = fields.flag("attention_bias", False)
    return {"qkv_bias": bias, "out_bias": bias}


def llama_like_config(
    fields: Fields,
    family: str,
    *,
    P: int,
    H: int | None = None,
    activation: str = "silu",
    tied: bool = False,
    eps: float = 1e-6,
    theta: float = 10000.0,
    **switches: Any,
) -> DecoderConfig:
    """Read what the configurations of Llama and its relatives have in common.

    Args:
      fields: the configuration.
      family: whose it is.
      P: the positions where the configuration does not say.
      H: the width of a head; absent: the configuration's head_dim, or D / N.
      activation: of the gated MLP.
      tied: whether the head is the embedding where the configuration does not say.
      eps: of the norms where the configuration does not say.
      theta: the base of rotary positions where the configuration does not say.
      switches: what sets the family apart; `rope` where rotary positions are described otherwise.
    """
    D, N = fields.count("hidden_size"), fields.count("num_attention_heads")
    K = fields.count("num_key_value_heads", None) or N
    H = head_width(fields, D, N, K, H or fields.count("head_dim", None))
    P = fields.count("max_position_embeddings", P)
    rope = switches.pop("rope", None) or rotary(fields, H, P, theta=theta)
    return DecoderConfig(
        family=family,
        L=fields.count("num_hidden_layers", most=LAYERS_MOST),
        D=D,
        F=fields.count("intermediate_size"),
        N=N,
        K=K,
        H=H,
        V=fields.count("vocab_size"),
        P=P,
        eps=fields.number("rms_norm_eps", eps),
        activation=activation,
        rope=rope,
        tied=fields.flag("tie_word_embeddings", tied),
        **switches,
    )


def from_gguf(fields: Fields) -> dict:
    """Translate llama.cpp's metadata to an HF configuration, see `read_gguf`."""
    return read_gguf(fields, "llama", "llama")


def read_gguf(fields: Fields, architecture: str, model_type: str) -> dict:
    """Translate the metadata that Llama and its relatives have in common to an HF configuration.

    Args:
      fields: the metadata.
      architecture: what the keys begin with.
      model_type: of the HF configuration.

    Raises:
      ValueError: on a key that is missing or of another type, and on heads of which only a part is
        rotated, or whose keys and values differ in width.
    """

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    D, N = fields.count(key("embedding_length")), fields.count(key("attention.head_count"))
    K = fields.count(key("attention.head_count_kv"), None) or N
    # The decoder has one width for a head's queries, keys and values, and rotates the whole head.
    H = head_width(fields, D, N, K, fields.count(key("attention.key_length"), None))
    for name in (key("attention.value_length"), key("rope.dimension_count")):
        if fields.count(name, H) != H:
            raise ValueError(
                f"the GGUF file says {name}={fields.values[name]}; "
                f"the decoder needs {H}, the width of a head's keys"
            )
    return {
        "model_type": model_type,
        "hidden_size": D,
        "intermediate_size": fields.count(key("feed_forward_length")),
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "head_dim": H,
        "num_hidden_layers": fields.count(key("block_count")),
        "max_position_embeddings": fields.count(key("context_length")),
        "rms_norm_eps": fields.number(key("attention.layer_norm_rms_epsilon")),
        "rope_theta": fields.number(key("rope.freq_base"), 10000.0),
        "rope_scaling": _scaling_of_gguf(fields, key("rope.")),
        "vocab_size": len(fields.sequence("tokenizer.ggml.tokens", str)),
    }


def _scaling_of_gguf(fields: Fields, prefix: str) -> dict:
    """Read the rotary scaling as llama.cpp does.

    Without a type it is linear; a factor of 0 is none, and files from before there were types have
    it under another key (llama_model::load_hparams in src/llama-model.cpp).
    """
    kind = fields.text(f"{prefix}scaling.type", None)
    factors = [
        fields.number(f"{prefix}{name}", None, above=-1e-9)
        for name in ("scaling.factor", "scale_linear")
    ]
    factor = next((factor for factor in factors if factor is not None), None)
    if kind == "none" or (kind is None and not factor):
        return {"rope_type": "default"}
    if kind == "yarn":
        raise ValueError(
            f"the GGUF file says {prefix}scaling.type='yarn', which is read of Hugging Face "
            "checkpoints only"
        )
    return {"rope_type": kind or "linear", "factor": factor}
