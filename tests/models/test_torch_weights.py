"""Weights in torch's files (pytorch_model.bin): the same arrays as from safetensors."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from reference.checkpoints import assert_same_arrays
from safetensors.torch import load_file

import jaxedit
from jaxedit.exports.base_tensors import base_tensors

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Evil:
    """Touches a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def to_torch(directory, **saving):
    """Put a torch file in the place of a directory's safetensors file; return its tensors."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / SINGLE, **saving)
    return tensors


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older"])
def test_a_torch_file_is_read_as_the_same_arrays(tiny_checkpoint, copy_of, family, is_zip):
    directory = copy_of(family)
    to_torch(directory, _use_new_zipfile_serialization=is_zip)
    assert_same_arrays(jaxedit.load(directory), jaxedit.load(tiny_checkpoint(family)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(copy_of, dtype):
    directory = copy_of("llama")
    tensors = to_torch(directory)
    rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    torch.save(rounded, directory / SINGLE)
    found = jaxedit.load(directory, dtype="float32").base["mlp/w_down"]
    expected = [
        rounded[f"model.layers.{layer}.mlp.down_proj.weight"].float().numpy().T
        for layer in range(len(found))
    ]
    np.testing.assert_array_equal(found, np.stack(expected))


def test_several_torch_files_are_read_by_their_index(tiny_checkpoint, copy_of):
    directory = copy_of("llama")
    tensors = to_torch(directory)
    names = [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    of = {name: names[i % 2] for i, name in enumerate(tensors)}
    for part in names:
        held = {name: tensors[name] for name in tensors if of[name] == part}
        torch.save(held, directory / part)
    (directory / SINGLE).unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": of}))
    assert_same_arrays(jaxedit.load(directory), jaxedit.load(tiny_checkpoint("llama")))

    (directory / names[1]).unlink()
    with pytest.raises(ValueError, match=rf"{names[1]} is missing, though {INDEX} lists it"):
        jaxedit.load(directory)


def test_safetensors_come_first(tiny_checkpoint, copy_of):
    directory = copy_of("gpt2")
    (directory / SINGLE).write_bytes(b"no torch file")
    assert_same_arrays(jaxedit.load(directory), jaxedit.load(tiny_checkpoint("gpt2")))


def test_nothing_in_a_torch_file_is_run(copy_of, tmp_path):
    directory = copy_of("llama")
    tensors = to_torch(directory)
    torch.save(tensors | {"evil": Evil(tmp_path / "touched")}, directory / SINGLE)
    with pytest.raises(ValueError, match="cannot be read as a torch file of weights only"):
        jaxedit.load(directory)
    with open(directory / SINGLE, "wb") as file:
        pickle.dump(Evil(tmp_path / "touched"), file)
    with pytest.raises(ValueError, match="cannot be read as a torch file of weights only"):
        jaxedit.load(directory)
    assert not (tmp_path / "touched").exists()


def test_what_is_no_tensor_is_named(copy_of):
    directory = copy_of("llama")
    torch.save(to_torch(directory) | {"step": 3}, directory / SINGLE)
    with pytest.raises(ValueError, match=rf"{SINGLE} holds 'step', of type int; expected tensors"):
        jaxedit.load(directory)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_torch_file_that_is_cut_short_is_refused(copy_of, kept):
    directory = copy_of("llama")
    to_torch(directory)
    content = (directory / SINGLE).read_bytes()
    (directory / SINGLE).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=re.escape(SINGLE)):
        jaxedit.load(directory)


def test_an_export_takes_the_tensors_of_torch_files(copy_of):
    directory = copy_of("llama")
    expected = to_torch(directory)
    found = base_tensors(jaxedit.load(directory), directory)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert (tensor.header.name, tensor.header.dtype) == (name, "F32")
        np.testing.assert_array_equal(tensor.read(), expected[name].numpy())
