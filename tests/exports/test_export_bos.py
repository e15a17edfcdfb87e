"""Texts behind a begin-of-text token: an export's perplexity is the study's, and torch's."""

import json

import pytest

import jaxedit
from jaxedit.exports.export import export
from jaxedit.exports.record import RECORD, read_export_record
from jaxedit.exports.verify import verify_export
from jaxedit.study.edited import open_edit, open_run, with_record

TEXTS = ["The sun rises in the east.", " Bread is baked in an oven, and eaten by people."]


@pytest.fixture
def edited(edited_models, tmp_path):
    """The golden llama with three edits, its texts scored behind a begin-of-text token."""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    made = edited_models("llama", "rome")
    return made._replace(texts=str(tmp_path / "texts.json"), bos=True, unedited_ppl=9.0)


@pytest.mark.parametrize("format", ["hf", "peft"])
def test_an_export_measures_as_its_study_does(edited, format, tmp_path):
    done = export(edited, tmp_path / "out", format)
    expected = jaxedit.perplexity(edited.model, TEXTS, bos=True).mean
    assert expected != jaxedit.perplexity(edited.model, TEXTS).mean
    record = read_export_record(done.folder)
    assert (record.bos, record.measured.perplexity) == (True, expected)
    assert ", a begin-of-text token in front." in (done.folder / "README.md").read_text()
    found = verify_export(done.folder)
    assert found.perplexity is not None
    assert [check for check in found.checks if not check.passed] == []
    assert found.perplexity[0] == pytest.approx(expected, rel=1e-4)


def test_an_older_export_is_read_as_one_without(edited, tmp_path):
    done = export(edited._replace(bos=False), tmp_path / "out", "delta")
    values = json.loads((done.folder / RECORD).read_text())
    del values["bos"]
    (done.folder / RECORD).write_text(json.dumps(values))
    assert read_export_record(done.folder).bos is False


@pytest.mark.parametrize("bos", [True, False])
def test_a_study_and_a_saved_edit_say_how_their_texts_were_scored(study_config, tmp_path, bos):
    facts = [{"prompt": "{} lives in", "subject": "BP", "target_new": "Paris"}]
    hyper = dict(layer=3, context_templates=("{}",), v_num_grad_steps=2)
    keep = dict(action="keep")
    config = study_config("rome", facts, TEXTS, hyper, dict(bos=bos), guard=keep)
    opened = open_run(jaxedit.run_study(config, tmp_path / "run").folder)
    assert opened.bos == bos
    (edit,) = opened.model.metadata.history
    with_record(edit, opened).save(tmp_path / "edit.safetensors")
    assert open_edit(tmp_path / "edit.safetensors").bos == bos
