"""Models in buckets, of which fsspec's own memory:// stands for all."""

import shutil

import fsspec
import numpy as np
import pytest
import torch
from reference.checkpoints import assert_same_arrays
from safetensors.torch import load_file

import jaxedit
from jaxedit.models import remote_directory
from jaxedit.models.load import resolve_path
from jaxedit.models.orbax import write_orbax
from jaxedit.remote import Place


@pytest.fixture
def put(monkeypatch, tmp_path):
    """Make a function: directory -> its address in a bucket; beside an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()

    def copy(directory):
        files.put(f"{directory}/", "/bucket/model/", recursive=True)
        return "memory://bucket/model"

    yield copy
    files.store.clear()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_directory_is_read_without_fetching_its_weights(put, tiny_checkpoint, family):
    address = put(tiny_checkpoint(family))
    assert_same_arrays(jaxedit.load(address), jaxedit.load(tiny_checkpoint(family)))
    names = {path.name for path in resolve_path(address).iterdir()}
    assert "config.json" in names
    assert "model.safetensors" not in names


def test_several_files_and_their_index_are_read(put, sharded, tiny_checkpoint):
    address = put(sharded("llama"))
    assert_same_arrays(jaxedit.load(address), jaxedit.load(tiny_checkpoint("llama")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_exactly(put, copy_of, dtype):
    directory = copy_of("llama")
    tensors = load_file(directory / "model.safetensors")
    from safetensors.torch import save_file

    save_file(
        {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    here = jaxedit.load(directory, dtype="float32")
    assert_same_arrays(jaxedit.load(put(directory), dtype="float32"), here)


def test_a_device_reads_its_own_rows(put, tiny_checkpoint, monkeypatch):
    """Of a tensor whose rows are cut over two devices, each read has half of the bytes."""
    address = put(tiny_checkpoint("llama"))
    jaxedit.load(address)
    reads = []
    read = Place.read

    def record(self, first=0, end=None):
        reads.append((first, end))
        return read(self, first, end)

    monkeypatch.setattr(Place, "read", record)
    source = remote_directory.open_remote_safetensors(
        remote_directory.remote_files(resolve_path(address))["model.safetensors"]
    )
    stored = next(each for each in source if each.name.endswith("0.mlp.up_proj.weight"))
    reads.clear()
    n_rows, n_columns = stored.shape
    half = stored.read((slice(n_rows // 2, n_rows), slice(0, n_columns)))
    whole = load_file(tiny_checkpoint("llama") / "model.safetensors")[stored.name].numpy()
    np.testing.assert_array_equal(half, whole[n_rows // 2 :])
    assert [end - first for first, end in reads] == [half.size * 4]
    np.testing.assert_array_equal(stored.read((slice(1, 3), slice(2, 5))), whole[1:3, 2:5])


def test_torch_files_and_converted_folders_are_fetched(put, copy_of, tiny_checkpoint, tmp_path):
    directory = copy_of("llama")
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    expected = jaxedit.load(tiny_checkpoint("llama"))
    assert_same_arrays(jaxedit.load(put(directory)), expected)

    write_orbax(expected, tiny_checkpoint("llama"), tmp_path / "converted")
    shutil.rmtree(tmp_path / "cache")
    fsspec.filesystem("memory").store.clear()
    assert_same_arrays(jaxedit.load(put(tmp_path / "converted")), expected)


def test_a_file_that_is_cut_short_or_another_is_refused(put, copy_of):
    directory = copy_of("llama")
    path = directory / "model.safetensors"
    content = path.read_bytes()
    for bad, message in (
        (content[:-100], "ends within|could not be used"),
        (content[:20], "is not JSON|holds"),
        (b"", "is no safetensors file"),
        (b"\xff" * 64, "is no safetensors file"),
    ):
        path.write_bytes(bad)
        fsspec.filesystem("memory").store.clear()
        with pytest.raises(ValueError, match=message):
            jaxedit.load(put(directory))


def test_a_place_without_a_model_says_what_is_there(put, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("no model")
    with pytest.raises(ValueError, match=r"bucket/model holds a.txt; expected an HF model"):
        jaxedit.load(put(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"nothing is at memory|there is nothing at"):
        jaxedit.load("memory://bucket/other.gguf")
