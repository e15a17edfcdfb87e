"""The HF model that an adapter is for, whatever the edited one was loaded from."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
from reference.models import hf_logits, hf_model, token_rows, write_gguf

import jaxedit
from jaxedit.edits.edit import LowRank, make_edit
from jaxedit.exports.export import export
from jaxedit.exports.hf_base import find_base
from jaxedit.models.orbax import is_converted, write_orbax
from jaxedit.study.edited import EditedModel


@pytest.fixture(scope="module")
def edited(edited_models):
    """The golden llama with three edits of rank one."""
    return edited_models("llama", "rome")


def adapter_config(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


def test_another_models_folder_is_no_base(edited, shared, tmp_path):
    with pytest.raises(ValueError, match=r"6 layers of 192 x 48, .* 6 of 112 x 48: it is another"):
        export(edited, tmp_path / "edited", base=str(shared / "golden" / "gptj"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["owner/name", "owner/name@refs/pr/6"])
def test_a_hub_base_is_named_with_its_revision(edited, tmp_path, monkeypatch, source):
    """The folder of a download is .../snapshots/COMMIT."""
    commit = "5f91d94bd9cd7190a9f3216ff93cd1dd95f2c7be"
    monkeypatch.setattr(
        "jaxedit.exports.hf_base.resolve_path", lambda name: tmp_path / "snapshots" / commit
    )
    named = edited._replace(source=source)
    base = find_base(named, None)
    assert (base.name, base.revision, base.is_on_hub) == ("owner/name", commit, True)
    done = export(named, tmp_path / "edited")
    config = adapter_config(done.folder)
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", commit)
    card = (done.folder / "README.md").read_text()
    assert f"from_pretrained('owner/name', revision='{commit}')" in card
    assert "base_model: owner/name\n" in card
    other = find_base(named, "someone/other@v1.0")
    assert (other.name, other.revision, other.is_on_hub) == ("someone/other", "v1.0", True)


@pytest.fixture
def converted(edited, golden, shared, tmp_path):
    """The edited model as one that was loaded from a folder of `jaxedit convert`."""
    folder = tmp_path / "converted"
    write_orbax(golden("llama"), shared / "golden" / "llama", folder)
    assert is_converted(folder)
    return edited._replace(source=str(folder))


def test_a_converted_folder_is_no_base(converted, shared, tmp_path):
    with pytest.raises(ValueError, match=r"is no HF directory here and no hub id.* by --base=DIR"):
        export(converted, tmp_path / "edited")
    export(converted, tmp_path / "edited", base=str(shared / "golden" / "llama"))
    config = adapter_config(tmp_path / "edited")
    assert config["base_model_name_or_path"].endswith("golden/llama")
    assert config["revision"] is None


@pytest.fixture(scope="module")
def directory(tiny_checkpoint) -> Path:
    return tiny_checkpoint("llama")


@pytest.fixture(scope="module")
def of_a_file(directory, tmp_path_factory) -> EditedModel:
    """A tiny llama loaded from a .gguf file, with a random edit of rank two."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, directory)
    model = jaxedit.load(str(path))
    _, F, D = model.base["mlp/w_down"].shape
    random = np.random.default_rng(0)
    u_FR, v_RD = (random.standard_normal(shape, np.float32) for shape in ((F, 2), (2, D)))
    edit = make_edit(model, [LowRank("mlp/w_down", 1, u_FR, v_RD)])
    return EditedModel(jaxedit.apply(model, edit), str(path), {}, (), (), None, "")


@pytest.mark.parametrize("format", ["peft", "delta"])
def test_a_file_needs_its_hf_base(of_a_file, format, tmp_path):
    """The error says what else can be done."""
    with pytest.raises(ValueError, match=r"by --base=DIR or --base=OWNER/NAME.*=gguf-lora.*=hf"):
        export(of_a_file, tmp_path / "edited", format)
    assert list(tmp_path.iterdir()) == []


def test_a_file_s_edits_work_on_its_hf_base(of_a_file, directory, tmp_path):
    """As exactly as the file holds the base's weights: here to 1e-4."""
    done = export(of_a_file, tmp_path / "edited", base=str(directory))
    model = peft.PeftModel.from_pretrained(hf_model(directory), done.folder).eval()
    rows = token_rows(of_a_file.model.config.V)
    ours = np.asarray(jaxedit.logits(of_a_file.model, rows))
    np.testing.assert_allclose(hf_logits(model, rows), ours, rtol=0, atol=1e-4)
    card = (done.folder / "README.md").read_text()
    assert "dequantised weights of tiny.gguf" in card
    assert "they are approximate" in card
