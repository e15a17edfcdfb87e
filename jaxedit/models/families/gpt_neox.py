"""GPT-NeoX (Black et al. 2022) and Pythia.

Fused queries, keys and values, heads rotated in part, attention and MLP in parallel behind two
norms.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.family import LAYERS_MOST, Weights, head_width
from jaxedit.models.fields import Fields
from jaxedit.models.rope_config import rotary

PREFIX = "gpt_neox."

WEIGHTS: Weights = {
    "gpt_neox.embed_in.weight": ("embed/tokens", "V D -> V D"),
    "gpt_neox.layers.{l}.input_layernorm.weight": ("attn/norm_scale", "D -> D"),
    "gpt_neox.layers.{l}.input_layernorm.bias": ("attn/norm_bias", "D -> D"),
    # Each head's queries, keys and values lie together.
    "gpt_neox.layers.{l}.attention.query_key_value.weight": (
        "attn/w_q attn/w_k attn/w_v",
        "(N c H) D -> c D N H",
    ),
    "gpt_neox.layers.{l}.attention.query_key_value.bias": (
        "attn/b_q attn/b_k attn/b_v",
        "(N c H) -> c N H",
    ),
    "gpt_neox.layers.{l}.attention.dense.weight": ("attn/w_o", "D (N H) -> N H D"),
    "gpt_neox.layers.{l}.attention.dense.bias": ("attn/b_o", "D -> D"),
    "gpt_neox.layers.{l}.post_attention_layernorm.weight": ("mlp/norm_scale", "D -> D"),
    "gpt_neox.layers.{l}.post_attention_layernorm.bias": ("mlp/norm_bias", "D -> D"),
    "gpt_neox.layers.{l}.mlp.dense_h_to_4h.weight": ("mlp/w_up", "F D -> D F"),
    "gpt_neox.layers.{l}.mlp.dense_h_to_4h.bias": ("mlp/b_up", "F -> F"),
    "gpt_neox.layers.{l}.mlp.dense_4h_to_h.weight": ("mlp/w_down", "D F -> F D"),
    "gpt_neox.layers.{l}.mlp.dense_4h_to_h.bias": ("mlp/b_down", "D -> D"),
    "gpt_neox.final_layer_norm.weight": ("final/norm_scale", "D -> D"),
    "gpt_neox.final_layer_norm.bias": ("final/norm_bias", "D -> D"),
    "embed_out.weight": ("head/w", "V D -> D V"),
    # the causal mask, saved by old versions of transformers
    "gpt_neox.layers.{l}.attention.bias": None,
    "gpt_neox.layers.{l}.attention.masked_bias": None,
    "gpt_neox.layers.{l}.attention.rotary_emb.inv_freq": None,  # computed
}

TINY = dict(
    model_type="gpt_neox",
    hidden_size=32,
    intermediate_size=72,
    num_attention_heads=4,
    num_hidden_layers=3,
    max_position_embeddings=64,
    vocab_size=96,
)


def config(fields: Fields) -> DecoderConfig:
    """Read a GPTNeoXConfig."""
    D, N = fields.count("hidden_size"), fields.count("num_attention_heads")
    H = head_width(fields, D, N, N)
    # Only what the decoder computes is accepted.
    fields.expect("hidden_act", "gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh")
    exact = fields.text("hidden_act", "gelu") == "gelu"  # Pythia; GPT-NeoX-20B has gelu_fast
    bias = fields.flag("attention_bias", True)
    P = fields.count("max_position_embeddings", 2048)
    # Sizes, then the switches that set the family apart.
    read = DecoderConfig(
        family="gpt_neox",
        L=fields.count("num_hidden_layers", most=LAYERS_MOST),
        D=D,
        F=fields.count("intermediate_size"),
        N=N,
        K=N,
        H=H,
        V=fields.count("vocab_size"),
        P=P,
        eps=fields.number("layer_norm_eps", 1e-5),
        activation="gelu" if exact else "gelu_tanh",
        norm="layer",
        gated=False,
        parallel=fields.flag("use_parallel_residual", True),
        rope=rotary(
            fields,
            H,
            P,
            thetas=("rotary_emb_base",),
            shares=("partial_rotary_factor", "rotary_pct"),
            share=0.25,
        ),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        tied=fields.flag("tie_word_embeddings", False),
    )
    fields.finish(
        attention_probs_dropout_prob="training only",
        hidden_dropout="training only",
        hidden_dropout_prob="training only",
        classifier_dropout="classification heads only",
    )
    return read
