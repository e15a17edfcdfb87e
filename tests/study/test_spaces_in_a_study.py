"""A study measures facts with the space that its editor trains on, and names contradictions."""

import json
import logging

import pytest
from study_examples import ONE_TEXT

import jaxedit
from jaxedit.edits.apply import apply
from jaxedit.edits.edit import read_edit
from jaxedit.edits.request import with_leading_space
from jaxedit.metrics.facts import average_facts, evaluate_facts
from jaxedit.study import loop
from jaxedit.study.edited import open_run
from jaxedit.study.journal import read_journal

FACTS = [
    {"prompt": "{} is in", "subject": "Ann", "target_new": "Rome", "target_true": "Paris"},
    {"prompt": "{} is  in ", "subject": "Ann", "target_new": "Oslo", "leading_space": "joined"},
]
HYPER = dict(layers=(3,), num_steps=2, leading_space="none", batch_size=2)


@pytest.fixture(scope="module")
def folder(study_config, tmp_path_factory):
    config = study_config("ft", FACTS, ONE_TEXT, HYPER, facts_per_edit=2)
    return loop.run_study(config, tmp_path_factory.mktemp("study") / "run")


def test_what_is_journalled_is_measured_with_the_facts_own_space(folder, golden):
    step = read_journal(folder).steps[1]
    requests = [jaxedit.Request(**fact) for fact in FACTS]
    own = with_leading_space(requests, "none")
    assert [request.leading_space for request in own] == ["none", "joined"]
    edited = apply(golden("gpt2"), read_edit(step.arrays))
    expected = average_facts(evaluate_facts(edited, own))["probability_new"]
    assert step.record.metrics["probability_new"] == pytest.approx(expected, rel=1e-3)
    with_spaces = average_facts(evaluate_facts(edited, requests))["probability_new"]
    assert expected != pytest.approx(with_spaces, rel=0.1)
    retained = json.loads((folder / "retained.json").read_text(encoding="utf-8"))["facts"][0]
    assert retained["probability_new"] == pytest.approx(expected, rel=1e-3)


def test_an_edited_model_knows_its_facts_spaces(folder):
    """From the file of facts, and from the journal where that is gone."""
    assert [r.leading_space for r in open_run(folder).requests] == ["none", "joined"]
    assert read_journal(folder).steps[1].record.leading_space == "none"


def test_contradictions_are_journalled(folder):
    record = read_journal(folder).steps[1].record
    assert record.contradictions == ["'Ann is in': 'Rome', 'Oslo'"]
    assert record.kept


def test_contradictions_are_told_when_an_edit_is_made(golden, caplog):
    editor = jaxedit.make_editor("ft", layers=(3,), num_steps=1)
    model, (first, second) = golden("gpt2"), [jaxedit.Request(**fact) for fact in FACTS]
    with caplog.at_level(logging.WARNING, "jaxedit"):
        editor.edit(model, [first, first], editor.init(model, None))
        assert not caplog.records
        editor.edit(model, [first, second], editor.init(model, None))
    (warning,) = caplog.records
    assert "contradict each other" in warning.getMessage()
    assert "'Ann is in': 'Rome', 'Oslo'" in warning.getMessage()
