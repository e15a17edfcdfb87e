"""Attributes of an HF configuration are read with their types; those that say nothing load."""

import json
import math

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxedit.models import family as families
from jaxedit.models.family import read_config

FAMILIES = families.family_names()
NAN = float("nan")
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# What HF's own classes refuse or compute something else with.
WRONG = [
    ("llama", dict(tie_word_embeddings="false"), 'tie_word_embeddings="false"; expected true or'),
    ("llama", dict(tie_word_embeddings=None), "tie_word_embeddings=null"),
    ("llama", dict(rms_norm_eps=True), "rms_norm_eps=true; expected a finite number above 0"),
    ("llama", dict(rms_norm_eps=-1e-6), "rms_norm_eps=-1e-06"),
    ("llama", dict(rms_norm_eps=NAN), "rms_norm_eps="),
    ("llama", dict(rms_norm_eps="1e-6"), "rms_norm_eps="),
    ("llama", dict(rms_norm_eps=10**400), "rms_norm_eps=1000"),
    ("llama", dict(rope_theta=0), "rope_theta=0"),
    ("llama", dict(rope_theta=-1e4), "rope_theta=-10000"),
    ("llama", dict(rope_theta=NAN), "rope_theta="),
    ("llama", dict(rope_theta=True), "rope_theta=true"),
    ("llama", dict(rope_scaling=LINEAR | {"factor": 0}), "factor=0"),
    ("llama", dict(rope_scaling=LINEAR | {"factor": "2"}), 'factor="2"'),
    ("llama", dict(rope_scaling=LINEAR | {"rope_type": []}), r"rope_type=\[\]; expected a string"),
    ("llama", dict(rope_scaling="linear"), 'rope_scaling="linear"; expected an object'),
    ("llama", dict(rope_scaling=LLAMA3 | {"high_freq_factor": 1.0}), "high_freq_factor=1.0"),
    ("llama", dict(rope_scaling=LLAMA3 | {"low_freq_factor": True}), "low_freq_factor=true"),
    ("llama", dict(num_attention_heads=0), "num_attention_heads=0; expected a whole number from 1"),
    ("llama", dict(num_attention_heads=True), "num_attention_heads=true"),
    ("llama", dict(num_attention_heads=5, head_dim=8), "5 query heads for 2 key-value heads"),
    ("llama", dict(num_attention_heads=6), "a width of 32 for 6 heads"),
    ("llama", dict(head_dim=7), "7 of a head's 7 entries would be rotated"),
    ("llama", dict(head_dim=10**9), "heads of width 1000000000"),
    ("llama", dict(num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
    ("llama", dict(hidden_size=32.0), "hidden_size=32.0"),
    ("llama", dict(max_position_embeddings="64"), 'max_position_embeddings="64"'),
    ("llama", dict(attention_bias="true"), "attention_bias="),
    ("llama", dict(mlp_bias=None), "mlp_bias=null"),
    ("llama", dict(mlp_bias=0), "mlp_bias=0"),
    ("llama", dict(model_type=["llama"]), "model_type"),
    ("gpt2", dict(scale_attn_weights=None), "scale_attn_weights=null"),
    ("gpt2", dict(n_embd=30), "a width of 30 for 4 heads"),
    ("gptj", dict(rotary_dim=None), "rotary_dim"),
    ("gptj", dict(rotary_dim=16), "16 of a head's 8 entries"),
    ("gptj", dict(rotary_dim=3), "rotary_dim=3"),
    ("gpt_neox", dict(use_parallel_residual="false"), "use_parallel_residual="),
    ("gpt_neox", dict(use_parallel_residual=None), "use_parallel_residual=null"),
    ("gpt_neox", dict(rotary_pct=1.5), "rotary_pct=1.5.* at most 1"),
    ("gpt_neox", dict(rotary_pct=1e-9), "0 of a head's 8 entries"),
    ("gemma", dict(head_dim=None), "head_dim"),
    ("qwen2", dict(sliding_window="4096"), "sliding_window="),
    ("qwen2", dict(layer_types="full_attention"), "layer_types=.*expected a list"),
    ("qwen2", dict(layer_types=[["full_attention"]]), "layer_types=.*expected a list of str"),
    ("qwen2", dict(max_window_layers=-1), "max_window_layers=-1"),
    ("llama", dict(pruned_heads={"0": [1]}), "pruned_heads="),
    ("llama", dict(is_encoder_decoder=True), "is_encoder_decoder=True"),
    ("gpt2", dict(add_cross_attention=True), "add_cross_attention=True"),
    ("llama", dict(quantization_config={"bits": 4}), "unknown attributes"),
    ("llama", dict(per_layer_config=[{}]), "unknown attributes"),
    ("llama", dict(auto_map={"AutoModel": "evil.Evil"}), "Python code .* never run"),
    ("llama", dict(auto_map={"AutoModel": "other/repo--evil.Evil"}), "Python code .* never run"),
]
# Attributes of published configurations that say nothing about the next token.
GPT2_MEDIUM = dict(n_special=0, predict_special_tokens=True, summary_type="cls_index", n_ctx=64)
LLAMA_1 = dict(max_sequence_length=64, pad_token_id=-1, tie_word_embeddings=False)
VERSION_4 = dict(
    add_cross_attention=False,
    bad_words_ids=None,
    cross_attention_hidden_size=None,
    diversity_penalty=0.0,
    finetuning_task=None,
    is_encoder_decoder=False,
    length_penalty=1.0,
    num_beam_groups=1,
    prefix=None,
    problem_type=None,
    pruned_heads={},
    tf_legacy_loss=False,
    tie_encoder_decoder=False,
    torchscript=False,
    use_bfloat16=False,
)
INERT = [
    ("gpt2", GPT2_MEDIUM),
    ("gpt2", dict(_num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})),
    ("llama", LLAMA_1),
    ("llama", dict(do_sample=True, temperature=0.6, top_p=0.9, max_length=4096)),
    ("llama", dict(tokenizer_class="LlamaTokenizer", unsloth_version="2024.9", future=None)),
    ("mistral", dict(_attn_implementation_autoset=True, attn_implementation="sdpa")),
    *((family, VERSION_4) for family in FAMILIES),
]


def tiny(family: str, **changes) -> dict:
    return {**families.find(family).TINY, **changes}


@pytest.mark.parametrize(("family", "change", "message"), WRONG)
def test_what_has_another_type_or_range_is_refused_by_name(family, change, message):
    with pytest.raises(ValueError, match=rf"^dir/config.json: .*{message}"):
        read_config(tiny(family, **change), "dir/config.json")


@pytest.mark.parametrize(("family", "inert"), INERT)
def test_attributes_that_say_nothing_about_inference_load(family, inert):
    assert read_config(tiny(family, **inert), "x") == read_config(tiny(family), "x")


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_that_transformers_writes_is_read(family, tmp_path):
    values = tiny(family)
    written = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    written.to_json_file(tmp_path / "config.json", use_diff=False)
    values = json.loads((tmp_path / "config.json").read_text())
    assert len(values) > 20
    assert read_config(values, "x") == read_config(tiny(family), "x")


odd = st.one_of(
    st.sampled_from([None, True, False, "", "false", "8", -1, 0, 1, 3, 2**31, 10**9, 10**400]),
    st.sampled_from([NAN, math.inf, -1e-6, 0.5, [], {}, [[]], ["x"], {"a": 1}, LINEAR, LLAMA3]),
    st.recursive(st.none() | st.integers() | st.text(), lambda deeper: st.lists(deeper)),
)
NAMES = sorted(
    {
        *(name for family in FAMILIES for name in families.find(family).TINY),
        *("rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "rotary_pct"),
        *(
            "sliding_window",
            "layer_types",
            "head_dim",
            "n_inner",
            "hidden_act",
            "num_local_experts",
        ),
        *("layer_norm_epsilon", "use_sliding_window", "pruned_heads", "auto_map", "more"),
    }
)


@settings(derandomize=True, max_examples=400, deadline=2000)
@given(st.sampled_from(FAMILIES), st.dictionaries(st.sampled_from(NAMES), odd, min_size=1))
def test_any_configuration_is_read_or_refused_by_name(family, changes):
    config, message = None, "dir/config.json: "
    try:
        config = read_config(tiny(family) | changes, "dir/config.json")
    except ValueError as error:
        message = str(error)
    assert message.startswith("dir/config.json: ")
    if config is None:
        return
    assert all(type(size) is int and size > 0 for size in config.sizes().values())
    assert 0 < config.eps < math.inf
    assert {type(config.tied), type(config.qkv_bias), type(config.parallel)} == {bool}
    if config.rope is not None:
        assert 0 < config.rope.theta < math.inf
        assert all(0 < factor < math.inf for factor in config.rope.factors or ())
