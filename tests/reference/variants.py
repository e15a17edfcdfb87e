"""Attributes of HF configurations with which a family's decoder is another."""

# Switches are tried together where no other could hide their effect: each compilation costs a
# second.
LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}
OWN_YARN = dict(beta_fast=4.0, beta_slow=0.5, mscale=1.5, mscale_all_dim=0.7, truncate=False)
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 4.0],
    "long_factor": [3.0, 4.0, 5.0, 6.0],
}
FACTORS = (
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
)
EPS_THETA = dict(rms_norm_eps=0.3, rope_theta=50.0)
WIDE_WINDOW = dict(use_sliding_window=True, sliding_window=48)
VARIANTS = {
    "llama": {
        "ungrouped, eps": dict(num_key_value_heads=4, rms_norm_eps=0.3),
        "one key head, tied": dict(num_key_value_heads=1, tie_word_embeddings=True),
        "biases, theta": dict(attention_bias=True, rope_theta=50.0),
        "linear": dict(rope_scaling=LINEAR),
        "llama3": dict(rope_scaling=LLAMA3, rope_theta=30.0),
        "yarn": dict(rope_scaling=YARN, rope_theta=30.0),
        "yarn, its own numbers": dict(rope_scaling={**YARN, **OWN_YARN}, rope_theta=30.0),
        "dynamic, within its positions": dict(rope_scaling=DYNAMIC),
        "wide heads": dict(head_dim=14),
    },
    "gpt2": {
        "n_inner, eps": dict(n_inner=40, layer_norm_epsilon=0.3),
        "gelu_pytorch_tanh, wide heads": dict(activation_function="gelu_pytorch_tanh", n_head=2),
    },
    "gptj": {
        "n_inner, eps, rotary_dim 2": dict(n_inner=40, layer_norm_epsilon=0.3, rotary_dim=2),
        "whole heads rotated": dict(rotary_dim=8),
    },
    "gpt_neox": {
        "one after the other, eps, theta": dict(
            use_parallel_residual=False, layer_norm_eps=0.3, rotary_emb_base=50.0
        ),
        "half of a head, tied, linear": dict(
            rotary_pct=0.5, tie_word_embeddings=True, rope_scaling=LINEAR
        ),
        "odd rotary width": dict(rotary_pct=0.4),
        "whole heads rotated, no attention biases": dict(rotary_pct=1.0, attention_bias=False),
        "gelu_fast": dict(hidden_act="gelu_fast"),
    },
    "phi": {
        "grouped, eps, theta": dict(num_key_value_heads=2, layer_norm_eps=0.3, rope_theta=50.0),
        "a quarter of a head, linear": dict(partial_rotary_factor=0.25, rope_scaling=LINEAR),
    },
    "qwen2": {
        "ungrouped, eps, theta": dict(num_key_value_heads=4, **EPS_THETA),
        "one key head, tied, window": dict(
            num_key_value_heads=1, tie_word_embeddings=True, max_window_layers=0, **WIDE_WINDOW
        ),
        "window of no layer, linear": dict(
            use_sliding_window=True, sliding_window=8, rope_scaling=LINEAR
        ),
        "window not in use": dict(sliding_window=8, max_window_layers=0),
    },
    "qwen3": {
        "ungrouped, eps, theta, tied": dict(
            num_key_value_heads=4, tie_word_embeddings=True, **EPS_THETA
        ),
        "biases, window in one layer": dict(
            attention_bias=True, max_window_layers=2, **WIDE_WINDOW
        ),
    },
    "mistral": {
        "ungrouped, eps, theta, window": dict(
            num_key_value_heads=4, sliding_window=48, **EPS_THETA
        ),
        "no window, wide heads, tied": dict(
            sliding_window=None, head_dim=14, tie_word_embeddings=True
        ),
        "window in one layer": dict(
            sliding_window=12,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    },
    "gemma2": {
        "ungrouped, eps, theta": dict(num_key_value_heads=4, **EPS_THETA),
        "caps that bind": dict(attn_logit_softcapping=0.5, final_logit_softcapping=2.0),
        "no caps, biases, window in other layers, untied": dict(
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            attention_bias=True,
            tie_word_embeddings=False,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
    },
    "gemma3_text": {
        "one key head, eps": dict(num_key_value_heads=1, rms_norm_eps=0.3),
        "thetas, scaling of layers without a window": dict(
            rope_parameters={
                "full_attention": {**LINEAR, "rope_theta": 70.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            }
        ),
        "pattern, biases": dict(layer_types=None, sliding_window_pattern=2, attention_bias=True),
    },
    "phi3": {
        "ungrouped, eps, window": dict(num_key_value_heads=4, rms_norm_eps=0.3, sliding_window=12),
        "one key head, a part of a head, tied": dict(
            num_key_value_heads=1,
            rope_parameters=dict(rope_type="default", rope_theta=50.0, partial_rotary_factor=0.75),
            tie_word_embeddings=True,
        ),
        "longrope": dict(
            rope_parameters=LONGROPE,
            max_position_embeddings=96,
            original_max_position_embeddings=48,
        ),
    },
    "olmo2": {
        "ungrouped, eps, theta": dict(num_key_value_heads=4, **EPS_THETA),
        "one key head, biases, tied": dict(
            num_key_value_heads=1, attention_bias=True, tie_word_embeddings=True
        ),
    },
    "smollm3": {
        "layers, eps, theta": dict(no_rope_layers=[0, 1, 1], **EPS_THETA),
        "window where there is no rotation": dict(
            use_sliding_window=True, sliding_window=8, attention_bias=True
        ),
    },
    "granite": {
        "ungrouped, biases, eps, theta": dict(
            num_key_value_heads=4, attention_bias=True, **EPS_THETA
        ),
        "every factor one": dict.fromkeys(FACTORS, 1.0),
    },
    "gemma": {
        "one key head, eps, theta": dict(num_key_value_heads=1, **EPS_THETA),
        "biases, untied, linear": dict(
            attention_bias=True, tie_word_embeddings=False, rope_scaling=LINEAR
        ),
    },
}
