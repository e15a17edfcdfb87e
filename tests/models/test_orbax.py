"""A converted model is the model, in whichever dtype it is read; what cannot be converted or read
says so.
"""

import json
import shutil

import numpy as np
import pytest

import jaxedit
from jaxedit.cli import run

FAMILIES = ("gpt2", "llama")


@pytest.fixture(scope="module")
def converted(shared, tmp_path_factory):
    """A function: family -> a golden model's converted folder."""
    made = {}

    def folder(family: str):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("converted") / family
            assert (
                run(
                    [
                        "jaxedit",
                        "convert",
                        f"--model={shared / 'golden' / family}",
                        f"--out={made[family]}",
                    ]
                )
                == 0
            )
        return made[family]

    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_same_model(family, dtype, shared, converted):
    first = jaxedit.load(str(shared / "golden" / family), dtype=dtype)
    again = jaxedit.load(str(converted(family)), dtype=dtype)
    assert again.config == first.config
    assert again.base.keys() == first.base.keys()
    for name, array in first.base.items():
        assert again.base[name].dtype == array.dtype
        np.testing.assert_array_equal(
            np.asarray(again.base[name], np.float32), np.asarray(array, np.float32), err_msg=name
        )
    assert again.fingerprint == first.fingerprint
    tokens = first.tokenizer.encode("The Eiffel Tower is in")
    assert again.tokenizer.encode("The Eiffel Tower is in") == tokens


def test_what_cannot_be_converted(shared, converted, tmp_path, capsys):
    model = f"--model={shared / 'golden' / 'gpt2'}"
    assert run(["jaxedit", "convert", model]) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert run(["jaxedit", "convert", model, f"--out={converted('gpt2')}"]) == 2
    assert "is not empty; give another folder" in capsys.readouterr().err
    (tmp_path / "model.gguf").write_bytes(b"")
    assert (
        run(
            [
                "jaxedit",
                "convert",
                f"--model={tmp_path / 'model.gguf'}",
                f"--out={tmp_path / 'out'}",
            ]
        )
        == 2
    )
    assert "is one file, which loads as it is" in capsys.readouterr().err


@pytest.mark.parametrize(("family", "size"), [("gpt2", None), ("llama", 56)])
def test_another_models_weights(family, size, shared, converted, tmp_path):
    """Of another family, or of other sizes."""
    copy = shutil.copytree(converted(family), tmp_path / "mixed")
    values = json.loads((shared / "golden" / "llama" / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps(values | ({"intermediate_size": size} if size else {}))
    )
    with pytest.raises(
        ValueError, match=r"weights is not the whole model of its config\.json .*; convert it again"
    ):
        jaxedit.load(str(copy))
