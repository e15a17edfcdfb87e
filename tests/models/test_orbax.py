"""A converted model is the model; what cannot be converted or read says so."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference.checkpoints import convert

import jaxedit
from jaxedit.cli import run

FAMILIES = ("gpt2", "llama")


@pytest.fixture(scope="module")
def converted(shared, tmp_path_factory):
    """Make a function: family -> a golden model's converted folder."""

    @functools.cache
    def folder(family: str) -> Path:
        out = tmp_path_factory.mktemp("converted") / family
        assert convert(shared / "golden" / family, out) == 0
        return out

    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_model_is_the_same_in_either_dtype(family, dtype, shared, converted):
    first = jaxedit.load(str(shared / "golden" / family), dtype=dtype)
    again = jaxedit.load(str(converted(family)), dtype=dtype)
    assert again.config == first.config
    assert again.base.keys() == first.base.keys()
    for name, array in first.base.items():
        assert again.base[name].dtype == array.dtype
        read, original = (np.asarray(a, np.float32) for a in (again.base[name], array))
        np.testing.assert_array_equal(read, original, err_msg=name)
    assert again.fingerprint == first.fingerprint
    tokens = first.tokenizer.encode("The Eiffel Tower is in")
    assert again.tokenizer.encode("The Eiffel Tower is in") == tokens


def test_converting_needs_a_folder(shared, capsys):
    assert run(["jaxedit", "convert", f"--model={shared / 'golden' / 'gpt2'}"]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_a_folder_with_something_in_it_is_not_written_to(shared, converted, capsys):
    assert convert(shared / "golden" / "gpt2", converted("gpt2")) == 2
    assert "is not empty; give another folder" in capsys.readouterr().err


def test_a_gguf_file_is_not_converted(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"")
    assert convert(tmp_path / "model.gguf", tmp_path / "out") == 2
    assert "is one file, which loads as it is" in capsys.readouterr().err


@pytest.mark.parametrize(("family", "size"), [("gpt2", None), ("llama", 56)])
def test_weights_of_another_family_or_size_are_refused(family, size, shared, converted, tmp_path):
    copy = shutil.copytree(converted(family), tmp_path / "mixed")
    values = json.loads((shared / "golden" / "llama" / "config.json").read_text())
    if size is not None:
        values["intermediate_size"] = size
    (copy / "config.json").write_text(json.dumps(values))
    message = r"weights is not the whole model of its config\.json .*; convert it again"
    with pytest.raises(ValueError, match=message):
        jaxedit.load(str(copy))
