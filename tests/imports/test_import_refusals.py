"""What cannot be imported exactly is refused by name, in one line."""

import logging
import os

import numpy as np
import pytest
import torch
from adapter_examples import write_adapter
from reference.checkpoints import edit_json, edit_tensors
from safetensors.numpy import save_file

import jaxedit

DOWN = "transformer.h.{l}.mlp.c_proj.weight"


@pytest.fixture
def folder(shared, tmp_path):
    """Write an adapter of the golden gpt2's attention and MLP."""
    lora = dict(target_modules=["c_attn", "mlp.c_proj"], r=2)
    write_adapter(shared / "golden" / "gpt2", tmp_path / "adapter", **lora)
    return tmp_path / "adapter"


def refusal(model, path, orientation=None) -> str:
    """Return what is said of an import, which is one line."""
    with pytest.raises(ValueError, match=r".") as error:
        jaxedit.import_adapter(model, path, orientation)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "has peft_type 'IA3'; of peft's adapters jaxedit reads LORA"),
        ({"use_dora": True}, "use_dora (DoRA, which also scales the columns"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save (whole modules that were trained"),
        ({"bias": "lora_only"}, "bias='lora_only' (trained biases of the base)"),
        ({"lora_bias": True}, "lora_bias (biases of the LoRA's own)"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' (which"),
        ({"layer_replication": [[0, 3]]}, "layer_replication (layers that are there several"),
        ({"some_new_switch": 3}, "some_new_switch (unknown here): more than the plain LoRA"),
        ({"layers_to_transform": [1, 2]}, "changes layers [0, 1, 2, 3, 4, 5], but"),
        ({"r": 3}, "'transformer.h.0.attn.c_attn' have shapes (2, 48) and (144, 2); expected (3,"),
        ({"r": "2"}, 'r="2"; expected a whole number'),
        ({"r": 0}, "r=0; expected a whole number"),
        ({"r": None}, "no r or no lora_alpha for 'transformer.h.0.attn.c_attn'"),
        ({"lora_alpha": float("nan")}, "lora_alpha="),
        ({"lora_alpha": True}, "lora_alpha=true; expected a finite number"),
        ({"use_rslora": "false"}, 'use_rslora="false"; expected true or false'),
        ({"layers_to_transform": ["1"]}, "layers_to_transform=["),
        ({"rank_pattern": [2]}, "rank_pattern=[2]; expected an object"),
        ({"alpha_pattern": {"c_attn": "4"}}, 'has c_attn="4"; expected a finite number'),
        ({"rank_pattern": {"(": 2}}, "has '(', which is no regular expression"),
        ({"rank_pattern": {"c_attn": 1}}, "expected (1, in) and (out, 1) by adapter_config.json"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_adapter_that_is_more_than_plain_lora(changes, said, folder, golden):
    edit_json(folder / "adapter_config.json", **changes)
    assert said in refusal(golden("gpt2"), folder)


def test_switches_that_are_off_or_say_nothing_are_accepted(folder, golden):
    off = {"use_dora": False, "modules_to_save": None, "some_new_switch": None}
    edit_json(folder / "adapter_config.json", **off, init_lora_weights="gaussian")
    assert jaxedit.import_adapter(golden("gpt2"), folder).edit is not None


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (dict(use_dora=True), "DoRA"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save"),
        (dict(bias="all"), "bias='all'"),
        (dict(target_modules=["c_attn", "wte"]), "a LoRA of an embedding"),
    ],
    ids=["dora", "modules_to_save", "bias", "embedding"],
)
def test_adapters_that_peft_itself_writes(lora, said, shared, golden, tmp_path):
    lora = {"target_modules": ["mlp.c_proj"], **lora}
    write_adapter(shared / "golden" / "gpt2", tmp_path / "adapter", **lora)
    assert said in refusal(golden("gpt2"), tmp_path / "adapter")


def tensors_of(name: str, change):
    """Make a function of a folder that changes one tensor of its adapter."""

    def tamper(folder):
        def edit(tensors):
            tensors[name] = change(tensors[name])

        edit_tensors(folder / "adapter_model.safetensors", edit)

    return tamper


def spoil(array):
    array[0, 0] = np.nan
    return array


A = "base_model.model.transformer.h.2.mlp.c_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (tensors_of(A, lambda a: a[:, 1:]), "the change of 'transformer.h.2.mlp.c_proj.weight' "),
        (tensors_of(A, spoil), f"1 of the 384 numbers of {A!r} are not finite"),
        (
            lambda folder: edit_tensors(folder / "adapter_model.safetensors", lambda t: t.pop(A)),
            "has one factor of 'transformer.h.2.mlp.c_proj' without the other",
        ),
        (
            lambda folder: edit_tensors(folder / "adapter_model.safetensors", lambda t: t.clear()),
            "is empty",
        ),
        (
            lambda folder: edit_tensors(
                folder / "adapter_model.safetensors",
                lambda t: t.update({A.replace("h.2", "h.9"): t.pop(A)}),
            ),
            "without the other",
        ),
        (
            lambda folder: os.truncate(folder / "adapter_model.safetensors", 3000),
            "is not a whole safetensors file",
        ),
        (
            lambda folder: (folder / "adapter_model.safetensors").unlink(),
            "neither adapter_model.safetensors nor adapter_model.bin",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{"),
            "adapter_config.json is not JSON",
        ),
        (
            lambda folder: (folder / "adapter_config.json").unlink(),
            "holds neither adapter_config.json nor config.json",
        ),
    ],
    ids=["shape", "nan", "half", "empty", "renamed", "cut", "missing", "json", "config"],
)
def test_damaged_adapters(tamper, said, folder, golden):
    tamper(folder)
    assert said in refusal(golden("gpt2"), folder)


def test_an_adapter_of_another_family(folder, golden):
    said = refusal(golden("llama"), folder)
    assert "has no weight 'transformer.h.0.attn.c_attn.weight'" in said


def test_an_adapter_of_a_larger_model(folder, golden, tiny_checkpoint):
    """Of more layers, and of other sizes."""
    tiny = jaxedit.load(str(tiny_checkpoint("gpt2")))
    assert "(gpt2, 3 layers) has no weight 'transformer.h.3." in refusal(tiny, folder)


def test_another_base_is_a_warning_only(folder, golden, caplog, shared):
    edit_json(folder / "adapter_config.json", base_model_name_or_path="openai-community/gpt2-xl")
    with caplog.at_level(logging.WARNING, "jaxedit"):
        jaxedit.import_adapter(golden("gpt2"), folder)
    (message,) = caplog.messages
    assert message.endswith(
        f"was made for openai-community/gpt2-xl; it is put on {shared / 'golden' / 'gpt2'}"
    )
    caplog.clear()
    edit_json(folder / "adapter_config.json", base_model_name_or_path="somebody/GPT2")
    jaxedit.import_adapter(golden("gpt2"), folder)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({DOWN.format(l=2): torch.zeros(192, 47)}, "has shape (192, 47); the model's weight has"),
        ({DOWN.format(l=6): torch.zeros(192, 48)}, "has no weight 'transformer.h.6.mlp.c_proj"),
        ({"lm_head.weight": torch.zeros(1024, 48)}, "has no weight 'lm_head.weight'"),
        ({DOWN.format(l=2): (torch.zeros(192), torch.zeros(48), 0)}, "holds 3 things; expected"),
        (
            {DOWN.format(l=2): (torch.zeros(192, 2), torch.zeros(48, 3))},
            "has shapes (192, 2) and (48, 3); expected two vectors (ROME), or two matrices",
        ),
        ({DOWN.format(l=2): "text"}, "holds str, expected numbers"),
        ({DOWN.format(l=2): (torch.full((192,), np.inf), torch.zeros(48))}, "are not finite"),
        ({}, "is empty: it changes no weight"),
        ([torch.zeros(3)], "holds a list; expected a dictionary of weights' names"),
        ({DOWN.format(l=2): np.random.default_rng(0)}, "cannot be read as a torch file of weights"),
    ],
    ids=[
        "shape",
        "layer",
        "tied",
        "triple",
        "ranks",
        "text",
        "infinite",
        "empty",
        "list",
        "pickle",
    ],
)
def test_torch_files(content, said, golden, tmp_path):
    torch.save(content, tmp_path / "deltas.pt")
    assert said in refusal(golden("gpt2"), tmp_path / "deltas.pt")


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
def test_files_cut_short(suffix, golden, tmp_path):
    path = tmp_path / f"deltas.{suffix}"
    arrays = {DOWN.format(l=2): np.ones((192, 48), np.float32)}
    if suffix == "pt":
        torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
    else:
        save_file(arrays, path) if suffix == "safetensors" else np.savez(path, **arrays)
    os.truncate(path, path.stat().st_size // 2)
    said = refusal(golden("gpt2"), path)
    assert str(path) in said
    path.write_bytes(b"")
    assert str(path) in refusal(golden("gpt2"), path)


def test_paths_that_are_nothing(golden, tmp_path):
    model, expected = golden("gpt2"), "expected a PEFT LoRA adapter's folder, "
    assert f"missing does not exist; {expected}" in refusal(model, tmp_path / "missing")
    assert f"config.json; {expected}" in refusal(model, tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert f"a.txt is of an unknown kind; {expected}" in refusal(model, tmp_path / "a.txt")
    said = refusal(model, tmp_path / "a.txt", "sideways")
    assert said == "orientation 'sideways': expected hf or transposed"


def test_files_of_other_uses(folder, golden, tmp_path):
    """An adapter's tensors without its configuration, and an edit of jaxedit."""
    model = golden("gpt2")
    said = refusal(model, folder / "adapter_model.safetensors")
    assert said.endswith("holds the factors of a LoRA adapter: give its folder")
    edit = jaxedit.import_adapter(model, folder).edit
    edit.save(tmp_path / "edit.safetensors")
    assert "is an edit of jaxedit: jaxedit.Edit.load" in refusal(
        model, tmp_path / "edit.safetensors"
    )


def test_base_weights_of_a_model_with_edits_stay(folder, golden, shared, tmp_path):
    write_adapter(shared / "golden" / "gpt2", tmp_path / "mlp", target_modules=["mlp.c_proj"])
    edited = jaxedit.import_adapter(golden("gpt2"), tmp_path / "mlp").model
    assert "this model has edits: import into the unedited model" in refusal(edited, folder)
