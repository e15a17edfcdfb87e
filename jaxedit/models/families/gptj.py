"""GPT-J (Wang & Komatsuzaki 2021).

Attention and MLP in parallel behind one norm, interleaved rotary positions.
"""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.family import LAYERS_MOST, Weights, head_width
from jaxedit.models.fields import Fields
from jaxedit.models.rope import Rope
from jaxedit.models.rope_config import check_rotary

PREFIX = "transformer."

WEIGHTS: Weights = {
    "transformer.wte.weight": ("embed/tokens", "V D -> V D"),
    "transformer.h.{l}.ln_1.weight": ("attn/norm_scale", "D -> D"),
    "transformer.h.{l}.ln_1.bias": ("attn/norm_bias", "D -> D"),
    "transformer.h.{l}.attn.q_proj.weight": ("attn/w_q", "(N H) D -> D N H"),
    "transformer.h.{l}.attn.k_proj.weight": ("attn/w_k", "(K H) D -> D K H"),
    "transformer.h.{l}.attn.v_proj.weight": ("attn/w_v", "(K H) D -> D K H"),
    "transformer.h.{l}.attn.out_proj.weight": ("attn/w_o", "D (N H) -> N H D"),
    "transformer.h.{l}.mlp.fc_in.weight": ("mlp/w_up", "F D -> D F"),
    "transformer.h.{l}.mlp.fc_in.bias": ("mlp/b_up", "F -> F"),
    "transformer.h.{l}.mlp.fc_out.weight": ("mlp/w_down", "D F -> F D"),
    "transformer.h.{l}.mlp.fc_out.bias": ("mlp/b_down", "D -> D"),
    "transformer.ln_f.weight": ("final/norm_scale", "D -> D"),
    "transformer.ln_f.bias": ("final/norm_bias", "D -> D"),
    "lm_head.weight": ("head/w", "V D -> D V"),
    "lm_head.bias": ("head/b", "V -> V"),
    "transformer.h.{l}.attn.bias": None,  # the causal mask, saved by old versions of transformers
    "transformer.h.{l}.attn.masked_bias": None,
}

TINY = dict(
    model_type="gptj", n_embd=32, n_head=4, n_layer=3, n_positions=64, rotary_dim=4, vocab_size=96
)


def config(fields: Fields) -> DecoderConfig:
    """Read a GPTJConfig."""
    D, N = fields.count("n_embd"), fields.count("n_head")
    H = head_width(fields, D, N, N)
    dims = fields.count("rotary_dim", 64)
    check_rotary(H, dims)
    if dims % 2:
        raise ValueError(f"{fields.what} has rotary_dim={dims}; pairs of neighbours are rotated")
    # Only what the decoder computes is accepted.
    fields.expect("activation_function", "gelu_new")
    fields.expect("tie_word_embeddings", False)
    fields.expect("rotary", True)
    fields.expect("scale_attn_weights", True)
    # Sizes, then the switches that set the family apart.
    read = DecoderConfig(
        family="gptj",
        L=fields.count("n_layer", most=LAYERS_MOST),
        D=D,
        F=fields.count("n_inner", None) or 4 * D,
        N=N,
        K=N,
        H=H,
        V=fields.count("vocab_size"),
        P=fields.count("n_positions"),
        eps=fields.number("layer_norm_epsilon", 1e-5),
        activation="gelu_tanh",
        norm="layer",
        gated=False,
        parallel=True,
        shared_norm=True,
        rope=Rope(theta=10000.0, dims=dims, interleaved=True),
        mlp_bias=True,
        head_bias=True,
    )
    fields.finish(
        attn_pdrop="training only",
        embd_pdrop="training only",
        resid_pdrop="training only",
        n_ctx="the same as n_positions",
        summary_activation="classification heads only",
        summary_first_dropout="classification heads only",
        summary_proj_to_labels="classification heads only",
        summary_type="classification heads only",
        summary_use_proj="classification heads only",
    )
    return read
