"""Paths are texts or Path objects, and a leading ~ is the user's home, wherever one is given."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxedit
from jaxedit.datasets import read_corpus, read_requests, read_texts
from jaxedit.exports.export import export
from jaxedit.exports.verify import verify_export
from jaxedit.study.config import default_config
from jaxedit.study.edited import open_edit, open_run

FACT = {"prompt": "{} lives in", "subject": "Bob", "target_new": "Paris"}
FACTS = [FACT]
TEXTS = ["The Eiffel Tower is in Paris."]
SPELLINGS = {
    "text": lambda home, name: str(home / name),
    "path": lambda home, name: home / name,
    "text with ~": lambda _, name: f"~/{name}",
    "path with ~": lambda _, name: Path("~") / name,
}


@pytest.fixture(scope="module")
def home(shared, study_config, tmp_path_factory):
    """Make a home with a model, facts, texts, a study and an edit of it."""
    home = tmp_path_factory.mktemp("home")
    (home / "model").symlink_to(shared / "golden" / "gpt2")
    hyper = dict(layer=3, v_num_grad_steps=2, context_templates=("{}",))
    config = study_config("rome", FACTS, TEXTS, hyper, guard=dict(action="keep"))
    (home / "facts.json").write_text(Path(config.facts).read_text())
    (home / "texts.json").write_text(Path(config.texts).read_text())
    (home / "corpus").mkdir()
    (home / "corpus" / "texts.json").write_text(Path(config.texts).read_text())
    study = jaxedit.run_study(config, home / "study")
    jaxedit.Edit.load(study.folder / "steps" / "000001.safetensors").save(home / "edit.safetensors")
    export(open_run(study.folder), home / "lora")
    return home


@pytest.fixture(params=SPELLINGS)
def place(request, home, monkeypatch):
    """A function: the name of a file in the home -> how a user gives it."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    yield lambda name: SPELLINGS[request.param](home, name)
    assert not (home / "~").exists()


def test_a_model(place):
    assert jaxedit.load(place("model")).config.L == 6


def test_facts_texts_and_a_corpus(place):
    assert read_requests(place("facts.json")).requests == [jaxedit.Request(**FACT)]
    assert read_texts(place("texts.json")) == TEXTS
    assert read_corpus(place("texts.json")) == read_corpus(place("corpus")) == TEXTS


def test_an_edit_is_saved_and_read(place, home, golden):
    model, edit = golden("gpt2"), jaxedit.Edit.load(place("edit.safetensors"))
    edit.save(place("again.safetensors"))
    again, first = home / "again.safetensors", home / "edit.safetensors"
    assert again.read_bytes() == first.read_bytes()
    again.unlink()
    assert jaxedit.import_edit(model, place("lora")).deltas[0].layer == 3
    assert jaxedit.import_adapter(model, place("lora")).edit is not None
    opened = open_edit(place("edit.safetensors"), source=place("model"))
    assert opened.path == str(first.resolve())
    export(opened, place("opened"))
    shutil.rmtree(home / "opened")


def test_second_moments_are_saved_and_read(place, home, golden):
    stats = jaxedit.collect_stats(golden("gpt2"), TEXTS * 40, layers=[3])
    resumed = jaxedit.collect_stats(
        golden("gpt2"), TEXTS * 40, layers=[3], resume=place("unfinished.safetensors")
    )
    assert resumed.digest == stats.digest
    stats.save(place("stats.safetensors"))
    assert jaxedit.Stats.load(place("stats.safetensors")).digest == stats.digest
    (home / "stats.safetensors").unlink()


def test_a_study_is_run_continued_and_opened(place, home, study_config):
    hyper = dict(layer=3, v_num_grad_steps=2, context_templates=("{}",))
    config = study_config("rome", FACTS, TEXTS, hyper, guard=dict(action="keep"))
    study = jaxedit.run_study(config, place("study"))
    assert study.folder == home / "study"
    assert len(jaxedit.open_study(place("study")).steps) == len(study.steps) == 1
    assert jaxedit.edited_model(place("study")).metadata.history
    assert open_run(place("study")).path == str((home / "study").resolve())


def test_an_export_is_written_and_verified(place, home):
    out = f"exported-{len(list(home.iterdir()))}"
    export(open_run(place("study")), place(out), base=place("model"))
    assert (home / out / "adapter_model.safetensors").is_file()
    assert verify_export(place(out), base=place("model")).passed


def test_a_hyper_parameter_that_is_a_path(place, home, golden):
    hyper = dict(layers=[3], v_num_grad_steps=2, context_templates=[["{}"]])
    editor = jaxedit.make_editor("memit", target_cache=place("values"), **hyper)
    model = golden("gpt2")
    stats = jaxedit.Stats.from_moments({3: np.eye(model.config.F)}, 1000, {})
    editor.edit(model, [jaxedit.Request(**FACT)], editor.init(model, stats))
    (kept,) = (home / "values").iterdir()
    assert kept.suffix == ".safetensors"
    kept.unlink()
    config = default_config("memit", target_cache=place("values"))
    assert json.loads(json.dumps(config.editor.to_dict()))["target_cache"] == str(home / "values")
    harm = dict(harm_projection=1.0, harm_texts=place("none.json"))
    harmless = jaxedit.make_editor("memit", layers=[3], **harm)
    with pytest.raises(ValueError, match=f"there is no file {home}{os.sep}none.json"):
        harmless.init(model, stats)
    mend = jaxedit.make_editor("mend", network=place("none.safetensors"), layers=[3])
    with pytest.raises(ValueError, match=f"{home}{os.sep}none.safetensors"):
        mend.init(model, None)
