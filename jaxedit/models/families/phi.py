"""Phi 1, 1.5 and 2 (Li et al. 2023).

Attention and MLP in parallel behind one norm, heads rotated in part, biases everywhere.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.family import LAYERS_MOST, Weights, head_width
from jaxedit.models.fields import Fields
from jaxedit.models.rope_config import rotary

PREFIX = "model."

WEIGHTS: Weights = {
    "model.embed_tokens.weight": ("embed/tokens", "V D -> V D"),
    "model.layers.{l}.input_layernorm.weight": ("attn/norm_scale", "D -> D"),
    "model.layers.{l}.input_layernorm.bias": ("attn/norm_bias", "D -> D"),
    "model.layers.{l}.self_attn.q_proj.weight": ("attn/w_q", "(N H) D -> D N H"),
    "model.layers.{l}.self_attn.k_proj.weight": ("attn/w_k", "(K H) D -> D K H"),
    "model.layers.{l}.self_attn.v_proj.weight": ("attn/w_v", "(K H) D -> D K H"),
    "model.layers.{l}.self_attn.dense.weight": ("attn/w_o", "D (N H) -> N H D"),
    "model.layers.{l}.self_attn.q_proj.bias": ("attn/b_q", "(N H) -> N H"),
    "model.layers.{l}.self_attn.k_proj.bias": ("attn/b_k", "(K H) -> K H"),
    "model.layers.{l}.self_attn.v_proj.bias": ("attn/b_v", "(K H) -> K H"),
    "model.layers.{l}.self_attn.dense.bias": ("attn/b_o", "D -> D"),
    "model.layers.{l}.mlp.fc1.weight": ("mlp/w_up", "F D -> D F"),
    "model.layers.{l}.mlp.fc1.bias": ("mlp/b_up", "F -> F"),
    "model.layers.{l}.mlp.fc2.weight": ("mlp/w_down", "D F -> F D"),
    "model.layers.{l}.mlp.fc2.bias": ("mlp/b_down", "D -> D"),
    "model.final_layernorm.weight": ("final/norm_scale", "D -> D"),
    "model.final_layernorm.bias": ("final/norm_bias", "D -> D"),
    "lm_head.weight": ("head/w", "V D -> D V"),
    "lm_head.bias": ("head/b", "V -> V"),
    # computed; saved by old versions of transformers
    "model.layers.{l}.self_attn.rotary_emb.inv_freq": None,
}

TINY = dict(
    model_type="phi",
    hidden_size=32,
    intermediate_size=72,
    num_attention_heads=4,
    num_hidden_layers=3,
    max_position_embeddings=64,
    vocab_size=96,
)


def config(fields: Fields) -> DecoderConfig:
    """Read a PhiConfig."""
    D, N = fields.count("hidden_size"), fields.count("num_attention_heads")
    K = fields.count("num_key_value_heads", None) or N
    H, P = head_width(fields, D, N, K), fields.count("max_position_embeddings", 2048)
    # Only what the decoder computes is accepted.
    fields.expect("hidden_act", "gelu_new", "gelu_pytorch_tanh")
    fields.expect("qk_layernorm", False)
    fields.expect("tie_word_embeddings", False)
    # Sizes, then the switches that set the family apart.
    read = DecoderConfig(
        family="phi",
        L=fields.count("num_hidden_layers", most=LAYERS_MOST),
        D=D,
        F=fields.count("intermediate_size"),
        N=N,
        K=K,
        H=H,
        V=fields.count("vocab_size"),
        P=P,
        eps=fields.number("layer_norm_eps", 1e-5),
        activation="gelu_tanh",
        norm="layer",
        gated=False,
        parallel=True,
        shared_norm=True,
        rope=rotary(fields, H, P, shares=("partial_rotary_factor",), share=0.5),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
    )
    fields.finish(embd_pdrop="training only", resid_pdrop="training only")
    return read
