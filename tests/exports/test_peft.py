"""LoRA adapters, read by the peft library itself: the edited model in torch is the one here."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
from reference.distance import relative
from reference.models import hf_logits, hf_model
from safetensors.numpy import load_file

import jaxedit
from jaxedit.edits.apply import without_edits
from jaxedit.exports.export import export
from jaxedit.study.edited import EditedModel

FAMILIES = ("gpt2", "gptj", "llama", "qwen2")
METHODS = ("rome", "memit", "alphaedit", "ft")


def peft_model(folder: Path):
    """Load an adapter and the base that it names, as the model card says."""
    config = json.loads((folder / "adapter_config.json").read_text())
    base = hf_model(config["base_model_name_or_path"])
    return peft.PeftModel.from_pretrained(base, folder).eval()


def changes(folder: Path) -> dict[str, np.ndarray]:
    """Read what an adapter adds, by hand: module -> float64 change, out x in."""
    config = json.loads((folder / "adapter_config.json").read_text())
    arrays = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    found = {}
    for module in config["target_modules"]:
        a, b = (
            arrays[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64)
            for side in "AB"
        )
        assert a.shape[0] == b.shape[1] == config["r"]
        found[module] = scale * b @ a
    return found


def delta(edited: EditedModel, layer: int) -> np.ndarray:
    """Return the change of a layer that the model itself has, float32 [F, D]."""
    overlay = edited.model.overlay
    return np.asarray(overlay.delta["mlp/w_down"][int(overlay.slot["mlp/w_down"][layer])])


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_has_the_edited_models_logits(edited_models, prompts, family, tmp_path):
    """After each method's edits, to 1e-4 on twenty prompts; dense ones by an SVD of full rank."""
    tokens_BT = prompts(family)
    for method in METHODS:
        edited = edited_models(family, method)
        export(edited, tmp_path / method)
        ours = np.asarray(jaxedit.logits(edited.model, tokens_BT))
        unedited = np.asarray(jaxedit.logits(without_edits(edited.model), tokens_BT))
        assert np.abs(ours - unedited).max() > 0.05, method
        theirs = hf_logits(peft_model(tmp_path / method), tokens_BT)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4, err_msg=method)


def test_layers_of_different_rank_are_padded_to_one(edited_models, prompts, exported):
    """Three edits of rank one in layer 3, on top of a dense one in layer 2."""
    edited = edited_models("llama", "rome", "ft")
    done = exported("llama", ("rome", "ft"))
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert {weight.layer: weight.rank for weight in done.weights} == {2: 48, 3: 3}
    assert config["r"] == config["lora_alpha"] == 48
    assert config["target_modules"] == [f"model.layers.{l}.mlp.down_proj" for l in (2, 3)]
    theirs = hf_logits(peft_model(done.folder), prompts("llama"))
    ours = jaxedit.logits(edited.model, prompts("llama"))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_the_configuration_is_peft_s(exported):
    done = exported("gpt2", ("rome",))
    config = peft.LoraConfig.from_pretrained(done.folder)
    assert (config.r, config.lora_alpha) == (3, 3)
    assert config.target_modules == {"transformer.h.3.mlp.c_proj"}
    assert config.fan_in_fan_out is True
    assert config.task_type == "CAUSAL_LM"
    assert config.base_model_name_or_path.endswith("/golden/gpt2")
    assert config.inference_mode


def test_only_conv1d_is_stored_in_x_out(exported):
    done = exported("gptj", ("rome",))
    assert peft.LoraConfig.from_pretrained(done.folder).fan_in_fan_out is False


def test_factors_are_the_edits_own(edited_models, exported):
    """Side by side in r, up to powers of two between A and B: no bit of the products changes."""
    done = exported("qwen2", ("rome",))
    arrays = load_file(done.folder / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.3.mlp.down_proj"
    for i, edit in enumerate(edited_models("qwen2", "rome").model.metadata.history):
        (change,) = edit.deltas
        a, b = arrays[f"{stem}.lora_A.weight"][i], arrays[f"{stem}.lora_B.weight"][:, i]
        power = np.log2(np.abs(a).max() / np.abs(change.u_FR).max())
        assert power == np.round(power)
        np.testing.assert_array_equal(np.outer(a, b), change.u_FR @ change.v_RD)


def test_a_rank_that_is_cut_is_the_closest_change_of_that_rank(edited_models, exported):
    """Its error is that of NumPy's singular values, by layer."""
    edited = edited_models("llama", "memit")
    done = exported("llama", ("memit",), rank=2)
    found = changes(done.folder)
    for weight in done.weights:
        exact_FD = delta(edited, weight.layer).astype(np.float64)
        singular = np.linalg.svd(exact_FD, compute_uv=False)
        expected = np.linalg.norm(singular[2:]) / np.linalg.norm(singular)
        assert weight.rank == 2
        assert 0.01 < weight.error == pytest.approx(expected, rel=1e-4)
        change = found[weight.name.removesuffix(".weight")].T
        assert relative(change, exact_FD) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_rounding_error_is_that_of_what_is_read_back(edited_models, exported, dtype):
    edited = edited_models("llama", "rome")
    done = exported("llama", ("rome",), dtype=dtype)
    adapter = peft_model(done.folder).base_model.model.model.layers[3].mlp.down_proj
    read_back = adapter.get_delta_weight("default").numpy().T
    (weight,) = done.weights
    assert 1e-5 < weight.error < 0.01
    assert relative(read_back, delta(edited, 3)) == pytest.approx(weight.error, rel=1e-2)
