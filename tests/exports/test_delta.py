"""Whole changes, added to the base in torch by the lines that the model card prints."""

import re

import numpy as np
import pytest
from reference.distance import relative
from reference.models import hf_logits
from safetensors.numpy import load_file

import jaxedit
from jaxedit.exports.export import export


def python_of(card: str) -> str:
    """The first block of Python of a model card."""
    found = re.search(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "qwen2"])
def test_the_printed_loader_gives_the_edited_model(
    edited_models, prompts, family, tmp_path, monkeypatch, capsys
):
    """Low-rank edits of layer 3 on top of dense ones of 2 to 4; logits to 1e-4."""
    edited = edited_models(family, "rome", "alphaedit")
    export(edited, tmp_path / "edited", "delta")
    monkeypatch.chdir(tmp_path)
    code, namespace = python_of((tmp_path / "edited" / "README.md").read_text()), {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert capsys.readouterr().out.startswith("The Eiffel Tower is in")
    loader, _, _ = code.partition("tokens = ")
    assert len(loader.splitlines()) <= 10
    theirs = hf_logits(namespace["model"], prompts(family))
    ours = jaxedit.logits(edited.model, prompts(family))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_arrays_are_the_edits_written_out(edited_models, tmp_path):
    """Under HF's names and in HF's orientation, out x in for Llama, as `Edit.dense` has them."""
    edited = edited_models("llama", "rome", "ft")
    done = export(edited, tmp_path / "edited", "delta")
    arrays = load_file(done.folder / "delta.safetensors")
    expected: dict[str, np.ndarray] = {}
    for edit in edited.model.metadata.history:
        for name, change in edit.dense().items():
            expected[name] = expected.get(name, 0) + change
    assert arrays.keys() == expected.keys()
    for name, change in expected.items():
        assert arrays[name].dtype == np.float32
        assert relative(arrays[name], change) < 1e-6
    assert [(weight.layer, weight.rank) for weight in done.weights] == [(2, None), (3, None)]


def test_rounding_is_measured(edited_models, tmp_path):
    edited = edited_models("llama", "rome")
    exact = export(edited, tmp_path / "float32", "delta")
    rounded = export(edited, tmp_path / "float16", "delta", dtype="float16")
    (name,) = [weight.name for weight in rounded.weights]
    found = load_file(rounded.folder / "delta.safetensors")[name].astype(np.float64)
    expected = load_file(exact.folder / "delta.safetensors")[name].astype(np.float64)
    (weight,) = rounded.weights
    assert weight.error == pytest.approx(relative(found, expected), rel=1e-2)
    assert 1e-5 < weight.error < 1e-3
