"""HF configurations: published ones are read, and those the decoder cannot compute are refused."""

import json
import math
import re
from pathlib import Path

import pytest
from reference.checkpoints import edit_json

import jaxedit
from jaxedit.models import family as families
from jaxedit.models.family import Fields
from jaxedit.models.rope import Rope

# Published config.json files, by name.
PUBLISHED = json.loads((Path(__file__).parent / "published_configs.json").read_text())
# What the decoders of these have.
EXPECTED = {
    "gpt2-xl": dict(D=1600, F=6400, N=25, K=25, H=64, L=48, V=50257, P=1024, tied=True, rope=None),
    "gpt-j-6b": dict(
        D=4096, F=16384, N=16, H=256, L=28, V=50400, tied=False, parallel=True, shared_norm=True
    ),
    "llama-2-7b": dict(D=4096, F=11008, N=32, K=32, H=128, eps=1e-5, qkv_bias=False, tied=False),
    "llama-3.2-1b": dict(D=2048, N=32, K=8, H=64, tied=True),
    "smollm2-135m-instruct": dict(
        D=576, F=1536, N=9, K=3, H=64, L=30, P=8192, rope=Rope(100000.0, 64)
    ),
    "pythia-2.8b": dict(
        D=2560,
        F=10240,
        N=32,
        K=32,
        H=80,
        P=2048,
        rope=Rope(1e4, 20),
        activation="gelu",
        qkv_bias=True,
    ),
    "gpt-neox-20b": dict(
        H=96, L=44, rope=Rope(1e4, 24), activation="gelu_tanh", parallel=True, shared_norm=False
    ),
    "qwen2.5-0.5b": dict(
        N=14, K=2, H=64, rope=Rope(1e6, 64), qkv_bias=True, out_bias=False, tied=True, window=None
    ),
    "qwen3-0.6b": dict(
        D=1024, N=16, K=8, H=128, rope=Rope(1e6, 128), qk_norm=True, qkv_bias=False, window=None
    ),
    "mistral-7b-v0.1": dict(H=128, K=8, P=32768, window=4096),
    "mistral-7b-v0.3": dict(V=32768, rope=Rope(1e6, 128), window=None),
    "phi-2": dict(H=80, rope=Rope(1e4, 32), parallel=True, shared_norm=True, head_bias=True),
    "gpt2-medium": dict(D=1024, F=4096, N=16, L=24, P=1024, tied=True),
    "distilgpt2": dict(D=768, F=3072, N=12, L=6, tied=True),
    "llama-7b": dict(D=4096, F=11008, N=32, K=32, P=2048, eps=1e-6, rope=Rope(1e4, 128)),
    "llama-3-8b": dict(N=32, K=8, V=128256, P=8192, rope=Rope(5e5, 128), tied=False),
    "qwen2-7b": dict(N=28, K=4, H=128, rope=Rope(1e6, 128), qkv_bias=True, window=None),
    "phi-1_5": dict(D=2048, L=24, N=32, K=32, H=64, rope=Rope(1e4, 32), head_bias=True),
    "gemma-7b": dict(D=3072, K=16, H=256, activation="gelu_tanh", embed_scale=3072**0.5),
    "gemma-2b": dict(
        K=1, H=256, activation="gelu_tanh", tied=True, embed_scale=2048**0.5, norm_offset=1.0
    ),
    "gemma-2-2b": dict(
        D=2304,
        H=256,
        post_norm=True,
        attn_softcap=50.0,
        logit_softcap=30.0,
        attn_scale=1 / 16,
        window=4096,
        window_layers=tuple(range(0, 26, 2)),
        tied=True,
    ),
    "gemma-2-9b-it": dict(D=3584, N=16, K=8, window_layers=tuple(range(0, 42, 2))),
    "gemma-3-270m": dict(
        D=640,
        F=2048,
        N=4,
        K=1,
        H=256,
        qk_norm=True,
        post_norm=True,
        attn_softcap=None,
        rope=Rope(1e6, 256),
        window_rope=Rope(1e4, 256),
        window=512,
        window_layers=tuple(l for l in range(18) if l % 6 != 5),
    ),
    "gemma-3-1b": dict(
        D=1152,
        L=26,
        rope=Rope(1e6, 256),
        window_rope=Rope(1e4, 256),
        window=512,
        window_layers=tuple(l for l in range(26) if l % 6 != 5),
    ),
    "phi-4": dict(N=40, K=10, H=128, rope=Rope(250000.0, 128), window=None, tied=False),
    "phi-4-mini": dict(
        N=24,
        K=8,
        H=128,
        window=262144,
        tied=True,
        rope=Rope(
            1e4,
            96,
            factors=(1.0,) * 48,
            longest=4096,
            attention_factor=(1 + math.log(32) / math.log(4096)) ** 0.5,
        ),
    ),
    "olmo-2-7b": dict(
        pre_norm=False, post_norm=True, qk_norm_all_heads=True, rope=Rope(5e5, 128), eps=1e-6
    ),
    "smollm3-3b": dict(
        K=4, unrotated_layers=tuple(range(3, 36, 4)), rope=Rope(5e6, 128), window=None, tied=True
    ),
    "granite-3-2b": dict(
        embed_scale=12.0, attn_scale=1 / 64, residual_scale=0.22, logit_scale=1 / 8, tied=True
    ),
}
NTK = {"rope_type": "ntk", "factor": 4.0}
OLD = {"type": "ntk-by-parts", "factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4}
PARTIAL = {"rope_type": "default", "partial_rotary_factor": 0.5}
SLIDES = ["sliding_attention"] * 3
HYBRID = dict(model_type="granitemoehybrid", num_local_experts=0)
REFUSED = [
    ("gpt2", dict(activation_function="relu"), r"activation_function='relu'.*'gelu_new'"),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", dict(n_embd=None), "no 'n_embd'"),
    ("gptj", dict(activation_function="gelu"), r"activation_function='gelu'.*'gelu_new'"),
    ("llama", dict(hidden_act="gelu"), r"hidden_act='gelu'.*'silu'"),
    ("llama", dict(mlp_bias=True), "mlp_bias=True"),
    ("llama", dict(rope_parameters=NTK), r"'ntk' is not supported.*llama3"),
    ("llama", dict(rope_parameters=None, rope_scaling=OLD), "'ntk-by-parts' is not supported"),
    ("llama", dict(rope_parameters=LINEAR), r"'linear' has \['factor'\], got \[\]"),
    ("llama", dict(rope_parameters=PARTIAL), "partial_rotary_factor"),
    ("llama", dict(model_type="retnet"), r"'retnet' is not supported; the families .*gpt2.*llama"),
    ("qwen3", dict(model_type="qwen3_5"), "'qwen3_5' has layers of linear attention"),
    (
        "qwen3",
        dict(model_type="qwen3_next"),
        "linear attention .* Choose a model whose every layer",
    ),
    ("granite", HYBRID, "'granitemoehybrid' has layers of linear attention"),
    ("granite", HYBRID | dict(layer_types=["attention"] * 3), "is not supported; the families"),
    ("gemma3_text", dict(model_type="gemma3"), "The text part of such a model is 'gemma3_text'"),
    ("phi3", dict(auto_map={"AutoConfig": "other.Config"}), r"auto_map=.*never run here"),
    ("smollm3", dict(no_rope_layers=[1, 0]), "no_rope_layers=.* of 2 numbers for 3 layers"),
    ("gemma2", dict(layer_types=["full_attention"]), "1 layer_types for 3 layers"),
    ("gemma3_text", dict(final_logit_softcapping=30.0), "final_logit_softcapping=30"),
    ("gemma3_text", dict(rope_parameters={"other": {}}), r"rope_parameters has \['other'\]"),
    ("phi3", dict(mlp_bias=True), "mlp_bias=True"),
    ("olmo2", dict(hidden_act="gelu"), "hidden_act='gelu'"),
    ("granite", dict(residual_multiplier=0.0), "residual_multiplier=0.0"),
    ("llama", dict(num_key_value_heads=4), r"k_proj.weight'.* has shape \(16, 32\).*'K': 4"),
    ("llama", dict(num_hidden_layers=2), r"not know: \['model.layers.2.*configuration's 2"),
    ("llama", dict(num_hidden_layers=4), "lacks 9 tensors.*model.layers.3"),
    ("llama", dict(attention_bias=True), "lacks 12 tensors.*_proj.bias"),
    ("gpt_neox", dict(hidden_act="relu"), r"hidden_act='relu'.*'gelu'"),
    ("gpt_neox", dict(rotary_pct=0.5), r"rotary_factor or rotary_pct as \[0.25, 0.5\]: only one"),
    ("gpt_neox", dict(attention_bias=False), r"attention.dense.bias', but .* has no attn/b_o"),
    ("qwen2", dict(rope_theta=5e5), r"rope_theta as \[10000.0, 500000.0\]: only one"),
    ("qwen2", dict(layer_types=["linear_attention"] * 3), r"layer_types \['linear_attention'\]"),
    ("qwen2", dict(layer_types=SLIDES), "ask for sliding attention, but no sliding window is in"),
    (
        "qwen3",
        dict(use_sliding_window=True, layer_types=SLIDES, sliding_window=None),
        "no sliding window",
    ),
    ("phi", dict(qk_layernorm=True), "qk_layernorm=True"),
    ("phi", dict(tie_word_embeddings=True), "tie_word_embeddings=True"),
    ("gemma", dict(hidden_activation="relu"), r"hidden_activation='relu'.*'gelu_pytorch_tanh'"),
    ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
]
MIXTURES = [
    ("mistral", dict(model_type="mixtral", num_local_experts=8), "num_local_experts"),
    ("qwen2", dict(model_type="qwen2_moe"), None),
    ("qwen3", dict(model_type="qwen3_moe", num_experts=128), "num_experts"),
    ("llama", dict(model_type="deepseek_v3", n_routed_experts=256), "n_routed_experts"),
    ("llama", dict(model_type="gpt_oss"), None),
    ("llama", dict(model_type="llama", num_local_experts=16), "num_local_experts"),
]


@pytest.mark.parametrize("name", EXPECTED)
def test_published_configurations_are_read(name):
    values = PUBLISHED[name]
    config = families.find(values["model_type"]).config(Fields(values))
    assert {field: getattr(config, field) for field in EXPECTED[name]} == EXPECTED[name]


def test_every_published_configuration_is_tried():
    assert EXPECTED.keys() == PUBLISHED.keys()


def test_llama3_turns_slow_pairs_slower_and_fast_ones_as_before():
    config = families.find("llama").config(Fields(PUBLISHED["llama-3.2-1b"]))
    assert config.rope.factors[-1] == pytest.approx(32.0)
    assert config.rope.factors[0] == 1.0


@pytest.mark.parametrize("family", families.family_names())
def test_an_unknown_attribute_is_refused_by_every_family(copy_of, family):
    directory = copy_of(family)
    edit_json(directory / "config.json", frobnication_factor=2)
    message = rf"unknown attributes \['frobnication_factor'\].*'{family}'"
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(directory))


@pytest.mark.parametrize(("family", "change", "message"), REFUSED)
def test_what_the_decoder_cannot_compute_is_refused(copy_of, family, change, message):
    directory = copy_of(family)
    edit_json(directory / "config.json", **change)
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(directory))


@pytest.mark.parametrize(("family", "change", "counts"), MIXTURES)
def test_mixtures_of_experts_are_refused(copy_of, family, change, counts):
    directory = copy_of(family)
    edit_json(directory / "config.json", **change)
    what = repr(change["model_type"])
    if counts is not None:
        what += f" with {{{counts!r}: {change[counts]}}}"
    message = (
        f"model_type {what} is a mixture of experts: "
        "its layers have no single MLP whose second weight could be edited"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        jaxedit.load(str(directory))


def test_attention_biases_that_the_configuration_denies_are_refused(copy_of):
    directory = copy_of("llama", attention_bias=True)
    edit_json(directory / "config.json", attention_bias=False)
    message = r"holds 'model.layers.0.self_attn.k_proj.bias', but .* has no attn/b_k"
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(directory))
