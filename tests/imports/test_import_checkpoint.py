"""The difference of two HF checkpoints: the imported model is the changed checkpoint."""

import shutil

import numpy as np
import pytest
from adapter_examples import logits, rows
from reference.checkpoints import edit_json, edit_tensors
from reference.models import assert_same_logits, hf_logits, hf_model
from safetensors.numpy import load_file

import jaxedit


@pytest.fixture
def copy(shared, tmp_path):
    """Make a function: (family, names' parts) -> a copy whose tensors with these parts differ."""

    def make(family: str, *parts: str):
        directory = shutil.copytree(shared / "golden" / family, tmp_path / "changed")
        (directory / "model.safetensors").chmod(0o644)
        (directory / "config.json").chmod(0o644)
        directory.chmod(0o755)
        rng = np.random.default_rng(0)

        def change(tensors):
            for name in tensors:
                if any(part in name for part in parts):
                    noise = 0.3 * rng.standard_normal(tensors[name].shape)
                    tensors[name] = tensors[name] + noise.astype(np.float32)

        edit_tensors(directory / "model.safetensors", change)
        return directory

    return make


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox", "llama", "qwen2"])
def test_all_weights_changed(family, copy, golden):
    directory = copy(family, "")
    imported = jaxedit.import_adapter(golden(family), directory)
    theirs = hf_logits(hf_model(directory), rows(golden(family).config.V))
    assert np.abs(theirs - logits(golden(family))).max() > 0.3
    assert_same_logits(logits(imported.model), theirs)
    assert imported.edit is not None
    n_weights = 3 if golden(family).config.gated else 2
    assert len(imported.edit.deltas) == n_weights * golden(family).config.L


def test_the_edited_weight_alone_is_an_edit(copy, golden, shared):
    """Its change is the files' difference in NumPy; weights that are equal are not there."""
    directory = copy("gptj", "3.mlp.fc_out.weight")
    edit = jaxedit.import_edit(golden("gptj"), directory)
    (delta,) = edit.deltas
    assert (type(delta), delta.layer) == (jaxedit.Dense, 3)
    name = "transformer.h.3.mlp.fc_out.weight"
    base = load_file(shared / "golden" / "gptj" / "model.safetensors")[name]
    changed = load_file(directory / "model.safetensors")[name]
    np.testing.assert_array_equal(delta.delta_FD, (changed - base).T)


def test_a_checkpoint_of_another_model(copy, golden, tiny_checkpoint):
    with pytest.raises(
        ValueError, match=r"is another model than .*: their configurations say llama"
    ):
        jaxedit.import_adapter(golden("gpt2"), tiny_checkpoint("llama"))


def test_equal_checkpoints(copy, golden):
    with pytest.raises(ValueError, match="have the same weights: nothing is changed"):
        jaxedit.import_adapter(golden("gpt2"), copy("gpt2"))


def test_a_checkpoint_with_nan(copy, golden):
    directory = copy("gpt2")

    def spoil(tensors):
        tensors["transformer.h.1.ln_1.weight"][3] = np.nan

    edit_tensors(directory / "model.safetensors", spoil)
    with pytest.raises(ValueError, match=r"1 of the \d+ numbers of 'transformer.h.1.ln_1.weight'"):
        jaxedit.import_adapter(golden("gpt2"), directory)


def test_a_checkpoint_that_lacks_a_tensor(copy, golden):
    directory = copy("gpt2")
    edit_tensors(
        directory / "model.safetensors", lambda found: found.pop("transformer.h.1.ln_1.weight")
    )
    with pytest.raises(ValueError, match=r"changed lacks \['transformer.h.1.ln_1.weight'\]"):
        jaxedit.import_adapter(golden("gpt2"), directory)


def test_a_base_that_is_no_directory(copy, smollm2):
    with pytest.raises(ValueError, match="no HF directory with safetensors files"):
        jaxedit.import_adapter(smollm2, copy("llama"))


def test_a_configuration_that_only_notes_something_else_is_the_same_model(copy, golden):
    directory = copy("gpt2", "h.0.mlp.c_proj.weight")
    edit_json(directory / "config.json", transformers_version="4.0")
    assert len(jaxedit.import_edit(golden("gpt2"), directory).deltas) == 1
