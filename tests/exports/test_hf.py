"""A checkpoint that is written of an edited model is that model, in transformers and here."""

import functools
import json
import logging
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from edited_examples import (
    LAYERS,
    REQUESTS,
    TEXTS,
    edited_model,
    prompt_tokens,
    read_tensors,
    summed_changes,
    with_factor,
    with_two_edits,
)
from reference.models import assert_same_logits, hf_logits, hf_model
from safetensors.torch import save_file

import jaxedit
from jaxedit.edits.apply import replay_edits
from jaxedit.exports.hf import default_dtype, measure_written, write_hf
from jaxedit.exports.written import ExportOptions

FAMILIES = ("gpt2", "gptj", "llama", "qwen2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def edited(shared):
    """Make a function: family -> its golden model with two edits."""
    return lambda family: edited_model(shared / "golden" / family)


@pytest.fixture(scope="module")
def exported(edited, tmp_path_factory):
    """Make a function: (family, dtype) -> the folder, and what was said of the weights."""

    @functools.cache
    def write(family: str, dtype: str = "float32"):
        folder = tmp_path_factory.mktemp(f"{family}-{dtype}")
        return folder, write_hf(edited(family), folder, ExportOptions(dtype))

    return write


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_edited_model(family, edited, exported, golden):
    folder, written = exported(family)
    tokens = prompt_tokens(edited(family).model)
    assert len(tokens) == 20
    theirs = hf_logits(hf_model(folder), tokens)
    assert_same_logits(jaxedit.logits(edited(family).model, tokens), theirs)
    assert np.abs(jaxedit.logits(golden(family), tokens) - theirs).max() > 0.1
    assert [weight.layer for weight in written] == list(LAYERS)
    assert all(0 < weight.error < 1e-5 for weight in written)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_edited_tensors_differ_from_the_bases_files(family, edited, exported, shared):
    """By the change, summed over the edits; the others are the same bits."""
    folder, written = exported(family)
    base, found = read_tensors(shared / "golden" / family), read_tensors(folder)
    changes = summed_changes(edited(family).model.metadata.history)
    assert found.keys() == base.keys()
    assert {weight.name for weight in written} == set(changes)
    for name, tensor in found.items():
        if name not in changes:
            assert torch.equal(tensor, base[name]), name
            continue
        expected = base[name].double().numpy() + changes[name]
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=0, atol=1e-6)
        assert np.abs(changes[name]).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_again_the_weights_are_base_and_overlay(family, edited, exported):
    model = edited(family).model
    again = jaxedit.load(str(exported(family)[0]))
    expected = dict(model.base)
    for layer in LAYERS:
        delta_FD = model.overlay.delta["mlp/w_down"][model.overlay.slot["mlp/w_down"][layer]]
        expected["mlp/w_down"] = expected["mlp/w_down"].at[layer].add(delta_FD)
    assert again.base.keys() == expected.keys()
    for name, array in again.base.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert again.config == model.config
    assert again.fingerprint != model.fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_rounding_leaves_is_that_of_the_definition(family, dtype, edited, exported, shared):
    """In float64, from weights that torch rounded."""
    folder, written = exported(family, dtype)
    base, found = read_tensors(shared / "golden" / family), read_tensors(folder)
    changes = summed_changes(edited(family).model.metadata.history)
    assert len(written) == len(LAYERS)
    for weight in written:
        delta = changes[weight.name].astype(np.float32)
        rounded = (base[weight.name] + torch.from_numpy(delta)).to(DTYPES[dtype])
        left = (rounded.double() - base[weight.name].to(DTYPES[dtype]).double()).numpy()
        error = np.linalg.norm(left - delta) / np.linalg.norm(delta)
        assert weight.error == pytest.approx(error, rel=1e-3)
        assert 1e-4 < error < 0.5
        assert (found[weight.name] != rounded).float().mean() < 1e-3  # sums in another order
    for name in base.keys() - {weight.name for weight in written}:
        assert torch.equal(found[name], base[name].to(DTYPES[dtype])), name


def test_the_dtype_is_what_transformers_loads_it_in(exported):
    folder, _ = exported("gpt2", "bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


@pytest.fixture(scope="module")
def half_base(shared, tmp_path_factory):
    """The golden llama in bfloat16, but for its last norm."""
    folder = tmp_path_factory.mktemp("half")
    shutil.copytree(shared / "golden" / "llama", folder, dirs_exist_ok=True)
    half = {n: t.bfloat16() for n, t in read_tensors(folder).items()}
    half["model.norm.weight"] = half["model.norm.weight"].float()
    (folder / "model.safetensors").unlink()
    save_file(half, folder / "model.safetensors")
    return folder


def test_a_checkpoint_has_its_bases_dtype_unless_another_is_asked_for(half_base, tmp_path, edited):
    assert default_dtype(edited("llama")) == "float32"
    about = with_two_edits(jaxedit.load(str(half_base)))
    assert default_dtype(about) == "bfloat16"
    base = read_tensors(half_base)
    for dtype in ("bfloat16", "float32"):
        written = write_hf(about, tmp_path / dtype, ExportOptions(dtype))
        found, names = read_tensors(tmp_path / dtype), {weight.name for weight in written}
        for name in base.keys() - names:
            kept = base[name] if dtype == "bfloat16" else base[name].float()
            assert found[name].dtype == kept.dtype, name
            assert torch.equal(found[name], kept), name
        assert {found[name].dtype for name in names} == {DTYPES[dtype]}
    tokens = prompt_tokens(about.model)
    assert_same_logits(
        jaxedit.logits(about.model, tokens), hf_logits(hf_model(tmp_path / "float32"), tokens)
    )


def test_an_edit_that_drowns_in_rounding_is_warned_of(edited, golden, tmp_path, caplog):
    small = with_factor(edited("gpt2"), golden("gpt2"), 1e-3)
    with caplog.at_level(logging.WARNING, "jaxedit"):
        written = write_hf(small, tmp_path / "float32", ExportOptions("float32"))
        assert not caplog.records
        lossy = write_hf(small, tmp_path / "bfloat16", ExportOptions("bfloat16"))
    assert all(weight.error < 0.05 for weight in written)
    assert all(weight.error > 0.05 for weight in lossy)
    worst = 100 * max(weight.error for weight in lossy)
    assert f"rounds up to {worst:.0f} % of the edits away (layers 2, 3)" in caplog.text


def test_what_a_dtype_cannot_hold_is_refused(edited, golden, tmp_path):
    large = with_factor(edited("gpt2"), golden("gpt2"), 1e7)
    with pytest.raises(ValueError, match=r"c_proj\.weight has entries too large for float16"):
        write_hf(large, tmp_path, ExportOptions("float16"))
    assert not list(tmp_path.glob("*.safetensors*"))[1:]


def test_large_checkpoints_are_written_in_several_files(edited, exported, tmp_path):
    limit = 200_000
    write_hf(edited("gptj"), tmp_path, ExportOptions(), max_shard_bytes=limit)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert sorted(set(index["weight_map"].values())) == files
    found, whole = read_tensors(tmp_path), read_tensors(exported("gptj")[0])
    assert found.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    largest = max(tensor.nbytes for tensor in whole.values())
    assert max(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < limit + largest
    tokens = prompt_tokens(edited("gptj").model)
    assert_same_logits(
        jaxedit.logits(edited("gptj").model, tokens), hf_logits(hf_model(tmp_path), tokens)
    )


def test_tokenizer_and_generation_settings_are_the_bases(exported, shared):
    folder, _ = exported("llama")
    base = shared / "golden" / "llama"
    copied = {path.name for path in base.glob("*token*.json")} | {"generation_config.json"}
    assert len(copied) == 4
    for name in copied:
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    values = json.loads((base / "config.json").read_text())
    assert json.loads((folder / "config.json").read_text()) == {**values, "torch_dtype": "float32"}


def test_names_are_those_of_the_bases_files(shared, tmp_path):
    """Also where these leave the family's prefix out."""
    base = tmp_path / "base"
    shutil.copytree(shared / "golden" / "gpt2", base)
    bare = {n.removeprefix("transformer."): t for n, t in read_tensors(base).items()}
    (base / "model.safetensors").unlink()
    save_file(bare, base / "model.safetensors")
    about = with_two_edits(jaxedit.load(str(base)))
    write_hf(about, tmp_path / "out", ExportOptions())
    found = read_tensors(tmp_path / "out")
    assert found.keys() == bare.keys()
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, bare[name])}
    assert changed == {f"h.{layer}.mlp.c_proj.weight" for layer in LAYERS}


def test_what_is_measured_of_a_rounded_checkpoint_is_what_torch_gives(edited, exported, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    about = edited("llama")._replace(texts=str(tmp_path / "texts.txt"))
    folder, _ = exported("llama", "bfloat16")
    measured, theirs = measure_written(folder, about), hf_model(folder)

    def log_probabilities(text: str) -> torch.Tensor:
        """Of each token but the first."""
        ids = torch.tensor([edited("llama").model.tokenizer.encode(text)])
        logits = torch.from_numpy(hf_logits(theirs, ids)).double()
        return logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]

    ppl = np.mean([float((-log_probabilities(text).mean()).exp()) for text in TEXTS])
    assert measured.perplexity == pytest.approx(ppl, rel=1e-4)
    for request, found in zip(REQUESTS, measured.probability_new, strict=True):
        n_prompt = len(edited("llama").model.tokenizer.encode(request.prompt_text))
        answer = log_probabilities(f"{request.prompt_text} {request.target_new}")[n_prompt - 1 :]
        assert found == pytest.approx(float(answer.sum().exp()), rel=1e-3)


def test_an_unedited_layer_with_room_is_copied(edited, golden, tmp_path, shared):
    """As in a study that kept no edit."""
    none = edited("gpt2")._replace(model=replay_edits(edited("gpt2").model, []))
    assert write_hf(none, tmp_path, ExportOptions("float32")) == []
    base, found = read_tensors(shared / "golden" / "gpt2"), read_tensors(tmp_path)
    assert all(torch.equal(found[name], base[name]) for name in base)
    assert jnp.asarray(golden("gpt2").base["mlp/w_down"]).any()
