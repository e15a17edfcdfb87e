"""The decoder computes what HF's torch models compute.

Every family, every switch of a family, the golden models, and SmolLM2; stories260K is in
test_stories.
"""

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
from reference.variants import VARIANTS

import jaxedit
from jaxedit.models import family as families
from jaxedit.models.built_in import built_in_file


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
