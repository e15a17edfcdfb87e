"""GPT-2 (Radford et al. 2019): learned positions, layer norm, biases everywhere, tied head."""

from jaxedit.models.config import DecoderConfig
from jaxedit.models.family import LAYERS_MOST, Weights, head_width
from jaxedit.models.fields import Fields

PREFIX = "transformer."

WEIGHTS: Weights = {
    "transformer.wte.weight": ("embed/tokens", "V D -> V D"),
    "transformer.wpe.weight": ("embed/positions", "P D -> P D"),
    "transformer.h.{l}.ln_1.weight": ("attn/norm_scale", "D -> D"),
    "transformer.h.{l}.ln_1.bias": ("attn/norm_bias", "D -> D"),
    "transformer.h.{l}.attn.c_attn.weight": ("attn/w_q attn/w_k attn/w_v", "D (c N H) -> c D N H"),
    "transformer.h.{l}.attn.c_attn.bias": ("attn/b_q attn/b_k attn/b_v", "(c N H) -> c N H"),
    "transformer.h.{l}.attn.c_proj.weight": ("attn/w_o", "(N H) D -> N H D"),
    "transformer.h.{l}.attn.c_proj.bias": ("attn/b_o", "D -> D"),
    "transformer.h.{l}.ln_2.weight": ("mlp/norm_scale", "D -> D"),
    "transformer.h.{l}.ln_2.bias": ("mlp/norm_bias", "D -> D"),
    "transformer.h.{l}.mlp.c_fc.weight": ("mlp/w_up", "D F -> D F"),
    "transformer.h.{l}.mlp.c_fc.bias": ("mlp/b_up", "F -> F"),
    "transformer.h.{l}.mlp.c_proj.weight": ("mlp/w_down", "F D -> F D"),
    "transformer.h.{l}.mlp.c_proj.bias": ("mlp/b_down", "D -> D"),
    "transformer.ln_f.weight": ("final/norm_scale", "D -> D"),
    "transformer.ln_f.bias": ("final/norm_bias", "D -> D"),
    "transformer.h.{l}.attn.bias": None,  # the causal mask, saved by old versions of transformers
    "transformer.h.{l}.attn.masked_bias": None,
    "lm_head.weight": ("head/w", "V D -> D V"),
}

# llama.cpp stores every matrix as out x in.
GGUF: Weights = {
    "token_embd.weight": ("embed/tokens", "V D -> V D"),
    "position_embd.weight": ("embed/positions", "P D -> P D"),
    "blk.{l}.attn_norm.weight": ("attn/norm_scale", "D -> D"),
    "blk.{l}.attn_norm.bias": ("attn/norm_bias", "D -> D"),
    "blk.{l}.attn_qkv.weight": ("attn/w_q attn/w_k attn/w_v", "(c N H) D -> c D N H"),
    "blk.{l}.attn_qkv.bias": ("attn/b_q attn/b_k attn/b_v", "(c N H) -> c N H"),
    "blk.{l}.attn_output.weight": ("attn/w_o", "D (N H) -> N H D"),
    "blk.{l}.attn_output.bias": ("attn/b_o", "D -> D"),
    "blk.{l}.ffn_norm.weight": ("mlp/norm_scale", "D -> D"),
    "blk.{l}.ffn_norm.bias": ("mlp/norm_bias", "D -> D"),
    "blk.{l}.ffn_up.weight": ("mlp/w_up", "F D -> D F"),
    "blk.{l}.ffn_up.bias": ("mlp/b_up", "F -> F"),
    "blk.{l}.ffn_down.weight": ("mlp/w_down", "D F -> F D"),
    "blk.{l}.ffn_down.bias": ("mlp/b_down", "D -> D"),
    "output_norm.weight": ("final/norm_scale", "D -> D"),
    "output_norm.bias": ("final/norm_bias", "D -> D"),
    "output.weight": ("head/w", "V D -> D V"),
}

TINY = dict(model_type="gpt2", n_embd=32, n_head=4, n_layer=3, n_positions=64, vocab_size=96)


def config(fields: Fields) -> DecoderConfig:
    """Read a GPT2Config."""
    D, N = fields.count("n_embd"), fields.count("n_head")
    H = head_width(fields, D, N, N)
    # Only what the decoder computes is accepted.
    fields.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
    fields.expect("scale_attn_weights", True)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    # Sizes, then the switches that set the family apart.
    read = DecoderConfig(
        family="gpt2",
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
        learned_positions=True,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=fields.flag("tie_word_embeddings", True),
    )
    fields.finish(
        n_ctx="the same as n_positions",
        n_special="GPT-1's special tokens, which GPT-2's code does not read",
        predict_special_tokens="GPT-1's head, which GPT-2's code does not read",
        attn_pdrop="training only",
        embd_pdrop="training only",
        resid_pdrop="training only",
        reorder_and_upcast_attn="training precision only; attention is float32 here",
        summary_activation="classification heads only",
        summary_first_dropout="classification heads only",
        summary_proj_to_labels="classification heads only",
        summary_type="classification heads only",
        summary_use_proj="classification heads only",
    )
    return read


def from_gguf(fields: Fields) -> dict:
    """Translate llama.cpp's metadata to an HF configuration.

    Raises:
      ValueError: on a key that is missing, of another type or has a value the decoder lacks.
    """
    N = fields.count("gpt2.attention.head_count")
    fields.expect("gpt2.attention.head_count_kv", N)
    return {
        "model_type": "gpt2",
        "n_embd": fields.count("gpt2.embedding_length"),
        "n_inner": fields.count("gpt2.feed_forward_length"),
        "n_head": N,
        "n_layer": fields.count("gpt2.block_count"),
        "n_positions": fields.count("gpt2.context_length"),
        "layer_norm_epsilon": fields.number("gpt2.attention.layer_norm_epsilon"),
        "vocab_size": len(fields.sequence("tokenizer.ggml.tokens", str)),
    }
