"""Files written tensor by tensor are those of the safetensors package."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jaxedit.exports.safetensors_stream import TensorHeader, stream_safetensors

TENSORS = {
    "mask": torch.tensor([[True, False, True]]),
    "a.half": torch.arange(5).half() / 3,
    "b.weight": torch.arange(6).float().reshape(2, 3).T.contiguous() / 7,
    "brain": torch.arange(3).bfloat16() / 7,
    "scalar": torch.tensor(2.5),
    "count": torch.tensor([1, -2]),
    "empty": torch.zeros(0, 4),
}
DTYPES = {
    torch.bool: "BOOL",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


def test_the_package_reads_what_it_would_have_written(tmp_path):
    """The same bytes as its own, in which each tensor begins at a multiple of its entries' size."""
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"format": "pt"})
    with safe_open(tmp_path / "theirs.safetensors", framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in TENSORS}
    headers = [TensorHeader(n, DTYPES[t.dtype], tuple(t.shape)) for n, t in TENSORS.items()]
    path = tmp_path / "ours.safetensors"
    stream_safetensors(path, headers, arrays.__getitem__)

    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    length = int.from_bytes(path.read_bytes()[:8], "little")
    announced = json.loads(path.read_bytes()[8 : 8 + length])
    assert announced.pop("__metadata__") == {"format": "pt"}
    assert length % 8 == 0
    for name, entry in announced.items():
        assert entry["data_offsets"][0] % TENSORS[name].element_size() == 0, name


def test_of_a_transposed_array_the_entries_are_written_in_order(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    path = tmp_path / "a.safetensors"
    stream_safetensors(path, [TensorHeader("a", "F32", (3, 2))], lambda name: array)
    assert torch.equal(load_file(path)["a"], torch.tensor([[0.0, 3], [1, 4], [2, 5]]))


def test_an_array_of_another_size_than_announced_leaves_no_file(tmp_path):
    path = tmp_path / "a.safetensors"
    for shape, dtype in (((2, 3), "F32"), ((3, 2), "F16")):
        with pytest.raises(ValueError, match="tensor 'a' is float32"):
            stream_safetensors(
                path, [TensorHeader("a", dtype, shape)], lambda name: np.zeros((3, 2), np.float32)
            )
    assert not path.exists()
