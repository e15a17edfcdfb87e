"""Checkpoints of models whose base is no HF directory: .gguf files and converted folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from edited_examples import read_tensors
from gguf import GGMLQuantizationType as Q
from reference.checkpoints import convert
from reference.models import assert_same_logits, hf_logits, hf_model, token_rows, write_gguf

import jaxedit
from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Dense, LowRank, make_edit
from jaxedit.exports.hf import default_dtype, write_hf
from jaxedit.exports.written import ExportOptions
from jaxedit.study.edited import EditedModel

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
ON_DEVICES = Path(__file__).parent / "write_on_devices.py"


def with_random_edit(model: jaxedit.Model) -> EditedModel:
    """Change two layers, one of them by low-rank factors, about as much as an edit does."""
    random = np.random.default_rng(0)
    F, D = model.config.F, model.config.D
    u_FR, v_RD, delta_FD = (
        random.normal(0, 0.2, shape).astype(np.float32) for shape in ((F, 2), (2, D), (F, D))
    )
    edit = make_edit(
        model, [LowRank("mlp/w_down", 0, u_FR, v_RD), Dense("mlp/w_down", 2, delta_FD)]
    )
    return EditedModel(apply(model, edit), model.metadata.source, {}, (), (), None, "")


@pytest.mark.parametrize(("family", "add_bos"), [("llama", True), ("gpt2", False)])
def test_a_gguf_base_becomes_a_checkpoint(family, add_bos, tiny_checkpoint, tmp_path):
    """Its weights dequantised, with a configuration and a tokenizer that transformers reads."""

    def describe(writer) -> None:
        writer.add_add_bos_token(add_bos)
        writer.add_chat_template(TEMPLATE)
        writer.add_pad_token_id(3)

    sizes = dict(intermediate_size=64, rope_theta=50.0) if family == "llama" else {}
    path = tmp_path / "tiny.gguf"
    original = write_gguf(path, tiny_checkpoint(family, **sizes), Q.Q8_0, change=describe)
    about = with_random_edit(jaxedit.load(str(path)))
    assert default_dtype(about) == "float32"
    folder = tmp_path / "out"
    assert len(write_hf(about, folder, ExportOptions())) == 2

    # What torch computes: the edited model, and but for the edited weights the original.
    theirs, rows = hf_model(folder), token_rows(96)
    assert_same_logits(jaxedit.logits(about.model, rows), hf_logits(theirs, rows))
    changed = {
        name
        for name, tensor in theirs.state_dict().items()
        if not torch.equal(tensor, original.state_dict()[name])
    }
    assert changed == set(about.model.metadata.history[0].dense())

    # Its tokens, and what is loaded here again.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    again = jaxedit.load(str(folder))
    for text in ("The Eiffel Tower is in 1998", " <|endoftext|>a  b", "café?"):
        expected = about.model.tokenizer.encode(text)
        assert tokenizer(text)["input_ids"] == expected == again.tokenizer.encode(text)
        assert (expected[0] == about.model.tokenizer.bos_id) == add_bos
    assert tokenizer.apply_chat_template([{"content": "Hi"}], tokenize=False) == "Hi"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|endoftext|>", "<|endoftext|>")
    assert tokenizer.pad_token_id == 3
    assert again.config == about.model.config
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (0, 3)
    names = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}
    assert json.loads((folder / "config.json").read_text())["architectures"] == [names[family]]


def test_scaled_frequencies_that_hf_cannot_say_are_refused(tiny_checkpoint, tmp_path):
    path = tmp_path / "tiny.gguf"
    factors = {"rope_freqs.weight": np.linspace(1, 8, 4).astype(np.float32)}
    write_gguf(path, tiny_checkpoint("llama"), extra=factors)
    about = with_random_edit(jaxedit.load(str(path)))
    with pytest.raises(ValueError, match=r"rope_freqs\.weight, which an HF config\.json cannot"):
        write_hf(about, tmp_path / "out", ExportOptions())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_a_converted_base_gives_the_checkpoint_of_its_origin(family, shared, tmp_path):
    origin, converted = shared / "golden" / family, tmp_path / "converted"
    assert convert(origin, converted) == 0
    for place, out in ((origin, "a"), (converted, "b")):
        about = with_random_edit(jaxedit.load(str(place)))
        write_hf(about, tmp_path / out, ExportOptions(default_dtype(about)))
    expected, found = read_tensors(tmp_path / "a"), read_tensors(tmp_path / "b")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_on_a_mesh_the_same_is_written(shared, tmp_path):
    """Eight devices, two copies of each key-value head; one layer at a time is gathered."""
    origin, converted = shared / "golden" / "llama", tmp_path / "converted"
    assert convert(origin, converted) == 0
    about = with_random_edit(jaxedit.load(str(origin)))
    about.model.metadata.history[0].save(tmp_path / "edit.safetensors")
    write_hf(about, tmp_path / "one", ExportOptions())
    subprocess.run([sys.executable, ON_DEVICES, tmp_path, origin, converted], check=True)
    expected = read_tensors(tmp_path / "one")
    for name in ("golden", "converted"):
        found = read_tensors(tmp_path / f"eight-{name}")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
