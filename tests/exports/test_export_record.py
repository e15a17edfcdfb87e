"""What an export says of itself is read back as it was."""

import dataclasses
import json

import numpy as np
import pytest

from jaxedit import Request
from jaxedit.edits.apply import apply
from jaxedit.edits.request import PromptAnswer
from jaxedit.exports.measured import ExportNumbers, measure_as, measure_edited
from jaxedit.exports.record import RECORD, export_record, read_export_record, write_export_record
from jaxedit.exports.written import ExportOptions, WrittenWeight
from jaxedit.metrics.answers import score_answers
from jaxedit.metrics.perplexity import perplexity
from jaxedit.models.model import with_bos
from jaxedit.study.edited import EditedModel, edit_model

REQUEST = Request("{} lives in", "BP", "Munich", neighbours=(PromptAnswer("Bob lives in", "Rome"),))
TEXTS = ["The sun rises in the east.", "Bread is baked in an oven."]
WRITTEN = [WrittenWeight("transformer.h.2.mlp.c_proj.weight", 2, None, 0.01)]


@pytest.fixture(scope="module")
def edited(golden, tmp_path_factory):
    """The golden gpt2 with one edit, and two texts."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS))
    model, _, _ = edit_model(
        golden("gpt2"), REQUEST, layer=2, v_num_grad_steps=5, context_templates=["{}"]
    )
    editor = {"method": "rome", "layer": 2}
    return EditedModel(model, model.metadata.source, editor, (), (REQUEST,), 9.0, str(path), "run")


def test_measured_is_what_the_metrics_say(edited):
    found = measure_edited(edited)
    answers = score_answers(edited.model, [("BP lives in", "Munich")])
    probability = float(np.exp(-answers.nll_nats * answers.n_tokens)[0])
    assert found.perplexity == pytest.approx(perplexity(edited.model, TEXTS).mean)
    assert found.probability_new == (pytest.approx(probability),)


def test_a_model_is_asked_behind_the_token_that_the_edited_one_is(edited, golden):
    """Whatever its own tokenizer does: an anchored edit is found behind that token only."""
    (edit,) = edited.model.metadata.history
    unedited = golden("gpt2")
    anchored = edited._replace(model=apply(unedited, dataclasses.replace(edit, anchor="bos")))
    assert anchored.model.tokenizer.add_bos
    assert measure_as(unedited, anchored) == measure_edited(
        anchored._replace(model=with_bos(unedited))
    )
    assert measure_as(unedited, anchored) != measure_edited(edited._replace(model=unedited))


def test_a_record_is_read_back(edited, tmp_path):
    options = ExportOptions("bfloat16", base="owner/name")
    record = export_record(edited, "hf", options, measure_edited(edited), WRITTEN)
    write_export_record(tmp_path, record)
    assert read_export_record(tmp_path) == record
    assert record.texts == tuple(TEXTS)
    assert (record.base, record.path) == (edited.source, "run")


def test_infinite_perplexity_is_read_back(edited, tmp_path):
    measured = measure_edited(edited)._replace(perplexity=float("inf"))
    write_export_record(tmp_path, export_record(edited, "hf", ExportOptions(), measured, WRITTEN))
    assert read_export_record(tmp_path).measured == measured


def test_what_is_no_export_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"jaxedit\.json is missing: expected a folder"):
        read_export_record(tmp_path)
    for content in ("{", json.dumps({"format": "hf"}), json.dumps([])):
        (tmp_path / RECORD).write_text(content)
        with pytest.raises(ValueError, match="is not the account of an export"):
            read_export_record(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"add_bos": "false"},
        {"run_steps": ["1"]},
        {"run_steps": "12"},
        {"texts": "a text"},
        {"requests": ["a"]},
        {"after_step": 1.5},
        {"options": {"dtype": "hf", "max_rank": "1", "base": None}},
        {"options": []},
        {"measured": {"perplexity": "high", "probability_new": []}},
        {"measured": None},
        {"written": [{"name": "w", "layer": True, "rank": None, "error": 0.0}]},
        {"written": [[]]},
        {"more": 1},
    ],
)
def test_an_entry_of_another_type_is_no_export(edited, tmp_path, change):
    measured = ExportNumbers(9.0, (0.5,))
    write_export_record(tmp_path, export_record(edited, "hf", ExportOptions(), measured, WRITTEN))
    values = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=r"jaxedit\.json is not the account of an export"):
        read_export_record(tmp_path)
