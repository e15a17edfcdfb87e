"""The decoder computes what HF's torch models compute.

Every family, every switch of a family, the golden models, and SmolLM2; stories260K is in
test_stories.
"""

import dataclasses
import json
import struct

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from reference.models import (
    assert_same_logits,
    gguf_name,
    hf_logits,
    hf_model,
    load_layout,
    padded,
    token_rows,
)

import jaxedit
from jaxedit.models import family as families
from jaxedit.models.load import built_in_file

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
EPS_THETA = dict(rms_norm_eps=0.3, rope_theta=50.0)
WIDE_WINDOW = dict(use_sliding_window=True, sliding_window=48)
VARIANTS = {
    "llama": {
        "ungrouped, eps": dict(num_key_value_heads=4, rms_norm_eps=0.3),
        "one key head, tied": dict(num_key_value_heads=1, tie_word_embeddings=True),
        "biases, theta": dict(attention_bias=True, rope_theta=50.0),
        "linear": dict(rope_scaling=LINEAR),
        "llama3": dict(rope_scaling=LLAMA3, rope_theta=30.0),
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
    },
    "gemma": {
        "one key head, eps, theta": dict(num_key_value_heads=1, **EPS_THETA),
        "biases, untied, linear": dict(
            attention_bias=True, tie_word_embeddings=False, rope_scaling=LINEAR
        ),
    },
}
# One layer's window is enough to bound a text.
WINDOWS = {
    "mistral": dict(sliding_window=24),
    "qwen2": dict(use_sliding_window=True, sliding_window=24, max_window_layers=0),
    "qwen3": dict(use_sliding_window=True, sliding_window=24, max_window_layers=2),
}


@pytest.mark.parametrize("family", families.family_names())
def test_every_family_equals_hf(tiny_checkpoint, family):
    directory = tiny_checkpoint(family)
    model = jaxedit.load(str(directory))
    rows = token_rows(model.config.V)
    expected = hf_logits(hf_model(directory), rows)
    assert_same_logits(jaxedit.logits(model, rows), expected)


@pytest.mark.parametrize("family", families.family_names())
def test_bfloat16_is_near_float32(tiny_checkpoint, family):
    directory = tiny_checkpoint(family)
    model = jaxedit.load(str(directory), dtype="bfloat16")
    assert {array.dtype for array in model.base.values()} == {jnp.dtype("bfloat16")}
    rows = token_rows(model.config.V)
    ours, expected = np.asarray(jaxedit.logits(model, rows)), hf_logits(hf_model(directory), rows)
    assert ours.dtype == np.float32
    difference = np.abs(ours - expected)
    assert 1e-4 < difference.max() < 0.3 * expected.std()
    assert difference.mean() < 0.02 * expected.std()


@pytest.mark.parametrize("family", families.family_names())
def test_a_checkpoint_stored_in_bfloat16_is_read_exactly(tiny_checkpoint, tmp_path, family):
    directory = tiny_checkpoint(family)
    hf_model(directory, torch.bfloat16).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    assert stored_dtypes(tmp_path / "model.safetensors") == {"BF16"}
    model = jaxedit.load(str(tmp_path), dtype="float32")
    rows = token_rows(model.config.V)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(hf_model(tmp_path), rows))


def stored_dtypes(path) -> set[str]:
    """Return the dtypes in a safetensors file, by its header."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize(
    ("family", "variant"),
    [(family, variant) for family, held in VARIANTS.items() for variant in held],
)
def test_every_variant_equals_hf(tiny_checkpoint, family, variant):
    directory = tiny_checkpoint(family, **VARIANTS[family][variant])
    model = jaxedit.load(str(directory))
    rows = token_rows(model.config.V, length=48)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(hf_model(directory), rows))


def test_rotary_positions_go_on_beyond_those_trained(tiny_checkpoint, caplog):
    directory = tiny_checkpoint("llama")
    model = jaxedit.load(str(directory))
    rows = token_rows(model.config.V, rows=2, length=80)
    assert_same_logits(jaxedit.logits(model, rows), hf_logits(hf_model(directory), rows))
    assert "more than the 64 positions" in caplog.text


def test_learned_positions_end(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"65 tokens.*64 positions.*shorten"):
        jaxedit.logits(jaxedit.load(str(tiny_checkpoint("gpt2"))), token_rows(96, length=65))


@pytest.mark.parametrize("family", WINDOWS)
def test_a_window_hides_nothing_up_to_its_length(tiny_checkpoint, family):
    directory = tiny_checkpoint(family, **WINDOWS[family])
    model, theirs = jaxedit.load(str(directory)), hf_model(directory)
    assert model.config.window == 24
    rows = token_rows(model.config.V, length=25)
    assert_same_logits(jaxedit.logits(model, rows[:, :24]), hf_logits(theirs, rows[:, :24]))
    # One further, and the 25th token no longer sees the first.
    config = dataclasses.replace(model.config, window=None)
    without = jaxedit.logits(dataclasses.replace(model, config=config), rows)
    difference = np.abs(np.asarray(without) - hf_logits(theirs, rows)).max(axis=(0, 2))
    assert difference[:24].max() < 1e-4 < 1e-2 < difference[24]


@pytest.mark.parametrize("family", WINDOWS)
def test_what_is_longer_than_a_window_is_refused(tiny_checkpoint, family):
    model = jaxedit.load(str(tiny_checkpoint(family, **WINDOWS[family])))
    row = rf"a row of tokens has 25 tokens.*sliding window of 24 .*{family}.*shorten or split"
    with pytest.raises(ValueError, match=row):
        jaxedit.logits(model, token_rows(model.config.V, length=25))
    text = r"text 0 .* has \d+ tokens, more than the sliding window of 24"
    with pytest.raises(ValueError, match=text):
        jaxedit.perplexity(model, ["The mother tongue of the author is French. " * 8])
    prompt = r"a prompt with its continuation has \d+ tokens, more than the sliding window"
    with pytest.raises(ValueError, match=prompt):
        jaxedit.generate(model, ["The tongue"], max_new_tokens=24)


def golden_families(root) -> list[str]:
    """Return the families that have a golden model.

    All of them where the data is absent, so that the test says so.
    """
    names = families.family_names()
    return [name for name in names if not root.is_dir() or (root / "golden" / name).is_dir()]


def pytest_generate_tests(metafunc):
    """Give a test each golden family that is found."""
    if "golden_family" in metafunc.fixturenames:
        shared = metafunc.config.rootpath.parent / "shared"
        metafunc.parametrize("golden_family", golden_families(shared))


def test_golden_logits(golden, golden_expected, golden_family):
    model = golden(golden_family)
    cases, expected = golden_expected(golden_family)
    given = sorted(int(name.split("/")[1]) for name in expected if name.startswith("logits/"))
    assert given
    token_lists = [model.tokenizer.encode(cases["texts"][i]) for i in given]
    logits = np.asarray(jaxedit.logits(model, padded(token_lists)))
    for i, row, tokens in zip(given, logits, token_lists, strict=True):
        assert_same_logits(row[: len(tokens)], expected[f"logits/{i}"])


@pytest.mark.smollm2
def test_smollm2_equals_hf_with_dequantised_weights(smollm2):
    reader = gguf.GGUFReader(built_in_file())
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    for name, _ in theirs.named_parameters():
        load_layout(theirs, name, tensors.pop(gguf_name(name)))
    assert not tensors
    assert_same_on_texts(smollm2, theirs)


def assert_same_on_texts(model: jaxedit.Model, theirs) -> None:
    """Compare logits and most likely tokens at the tokens of some texts.

    What follows a text's end is no text: there this model is so sensitive that float32 and float64
    differ by 1e-3.
    """
    texts = [
        "The Eiffel Tower is located in the city of",
        " Book a black Escalade limo in Dallas for Funerals, Wakes and Memorial Services",
        "def add(a, b):\n    return a + b  # 12345",
    ]
    token_lists = [model.tokenizer.encode(text) for text in texts]
    rows = padded(token_lists)
    is_text = np.arange(rows.shape[1]) < np.array([[len(tokens)] for tokens in token_lists])
    expected = hf_logits(theirs, rows)[is_text]
    ours = np.asarray(jaxedit.logits(model, rows))[is_text]
    assert_same_logits(ours, expected, atol=1e-3)
    assert (ours.argmax(-1) == expected.argmax(-1)).all()
