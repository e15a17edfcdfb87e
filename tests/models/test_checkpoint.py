"""HF directories become the right arrays, and what is wrong with one is said by name."""

import json
import shutil
import tracemalloc

import einops
import numpy as np
import pytest
from reference.checkpoints import assert_same_arrays, edit_json, edit_tensors
from safetensors.numpy import load_file

import jaxedit
from jaxedit.models import family as families
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.weight_layout import axis_sizes

INDEX = "model.safetensors.index.json"
DOWN = "model.layers.1.mlp.down_proj.weight"


# Arrays


@pytest.mark.parametrize("family", families.family_names())
def test_shards_give_the_same_arrays(tiny_checkpoint, sharded, family):
    whole = jaxedit.load(str(tiny_checkpoint(family)))
    assert_same_arrays(jaxedit.load(str(sharded(family))), whole)


@pytest.mark.parametrize("family", families.family_names())
def test_every_parameter_is_filled_from_its_own_tensor(tiny_checkpoint, family):
    """The table backwards gives the file's own tensors."""
    directory = tiny_checkpoint(family)
    model = jaxedit.load(str(directory))
    assert model.base.keys() == parameter_shapes(model.config).keys()
    stored = load_file(directory / "model.safetensors")
    for parameter, (name, pattern) in model.metadata.tensor_names.items():
        if parameter not in model.base:
            continue
        sizes = axis_sizes(model.config, (parameter, pattern))
        hf_side, our_side = pattern.split(" -> ")
        layers = np.asarray(model.base[parameter]) if "{l}" in name else [model.base[parameter]]
        for layer, ours in enumerate(layers):
            back = einops.rearrange(np.asarray(ours), f"{our_side} -> {hf_side}", **sizes)
            theirs = stored[name.replace("{l}", str(layer))]
            np.testing.assert_array_equal(back, theirs, err_msg=name)
    assert model.metadata.tensor_names["mlp/w_down"][0].endswith(".weight")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_little_more_than_what_stays(tiny_checkpoint, dtype):
    """On a CPU, where slices stay as they are read.

    Other devices copy them, so one more at most is held for them.
    """
    sizes = dict(hidden_size=64, intermediate_size=2048, num_hidden_layers=12)
    directory = tiny_checkpoint("llama", **sizes)
    jaxedit.load(str(directory), dtype=dtype)  # what is imported and compiled on the way stays too
    tracemalloc.start()
    try:
        model = jaxedit.load(str(directory), dtype=dtype)
        stays, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = max(array.nbytes for array in model.base.values())
    assert 3 * largest < peak < stays + largest


def test_gpt2_names_without_their_prefix_are_read(tiny_checkpoint, copy_of):
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
    before = jaxedit.load(str(directory)).base["final/norm_bias"]
    edit_tensors(
        directory / "model.safetensors", lambda t: t["transformer.ln_f.bias"].__iadd__(1.0)
    )
    after = jaxedit.load(str(directory)).base["final/norm_bias"]
    np.testing.assert_allclose(after, before + 1.0, atol=1e-6)


def test_a_single_file_comes_before_an_index(tiny_checkpoint, sharded):
    directory = sharded("gpt2")
    edit_json(directory / INDEX, weight_map={"nothing": "nowhere.safetensors"})
    shutil.copy(tiny_checkpoint("gpt2") / "model.safetensors", directory)
    assert_same_arrays(jaxedit.load(str(directory)), jaxedit.load(str(tiny_checkpoint("gpt2"))))


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


# Tensors that are wrong


def add_tensor(tensors):
    tensors["model.layers.0.mlp.extra.weight"] = np.ones(3, np.float32)


def transpose_down(tensors):
    tensors[DOWN] = tensors[DOWN].T


def shorten(name: str):
    def change(tensors):
        tensors[name] = tensors[name][:-1]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_tensor, r"model.layers.0.mlp.extra.weight"),
        (lambda tensors: tensors.pop(DOWN), rf"lacks 1 tensors.*{DOWN}"),
        (lambda tensors: tensors.pop("lm_head.weight"), "lacks 1 tensors.*lm_head.weight"),
        (transpose_down, rf"'{DOWN}' .* has shape \(72, 32\).*'D F'.*'F': 72"),
        (shorten("model.norm.weight"), r"'model.norm.weight' of .* has shape \(31,\)"),
        (shorten("model.embed_tokens.weight"), r"tokens.weight' .* shape \(95, 32\).*'V': 96"),
    ],
)
def test_tensors_that_contradict_the_configuration_are_named(copy_of, change, message):
    directory = copy_of("llama")
    edit_tensors(directory / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(directory))


# Files that are wrong


def test_a_tensor_in_two_shards_is_refused(sharded):
    directory = sharded("llama")
    files = sorted(directory.glob("*.safetensors"))
    name, array = next(iter(load_file(files[0]).items()))
    edit_tensors(files[1], lambda tensors: tensors.update({name: array}))
    with pytest.raises(ValueError, match=rf"{name}.*{files[0].name}.*{files[1].name}"):
        jaxedit.load(str(directory))


def test_a_file_that_only_the_index_has_is_missed(sharded):
    directory = sharded("llama")
    lost = sorted(directory.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"{lost.name} is missing, though {INDEX} lists it"):
        jaxedit.load(str(directory))


def test_a_tensor_that_only_the_index_has_is_missed(sharded):
    directory = sharded("llama")
    first = sorted(directory.glob("*.safetensors"))[0]
    name = next(iter(load_file(first)))
    edit_tensors(first, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=rf"lists \['{name}'\]"):
        jaxedit.load(str(directory))


def test_a_tensor_in_another_file_than_the_index_says_is_refused(sharded):
    directory = sharded("llama")
    first, second, *_ = sorted(directory.glob("*.safetensors"))
    name = next(iter(load_file(first)))
    index = json.loads((directory / INDEX).read_text())
    edit_json(directory / INDEX, weight_map={**index["weight_map"], name: second.name})
    with pytest.raises(ValueError, match=rf"{name}.*{first.name}.*says '{second.name}'"):
        jaxedit.load(str(directory))


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.9999])
def test_a_file_that_is_cut_short_is_refused(copy_of, kept):
    path = copy_of("llama") / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    message = r"model.safetensors \([\d,]+ bytes\) is not a whole safetensors file"
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(path.parent))


def test_weights_of_another_kind_are_named_with_a_remedy(copy_of):
    directory = copy_of("llama")
    (directory / "model.safetensors").rename(directory / "other.bin")
    message = r"holds none of model.safetensors, .*other.bin is there: .* save_pretrained\("
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(directory))


def test_a_tokenizer_that_is_missing_is_named(copy_of):
    directory = copy_of("llama")
    (directory / "tokenizer.json").unlink()
    message = r"no tokenizer in .*tokenizer.json or vocab.json with merges.txt or tokenizer.model"
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(directory))


def test_a_configuration_that_is_missing_or_no_json_is_named(copy_of):
    directory = copy_of("llama")
    (directory / "config.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        jaxedit.load(str(directory))
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing: an HF model directory holds"):
        jaxedit.load(str(directory))
