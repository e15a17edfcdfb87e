"""A study's requests asked again: the same study where nothing is set, or on a second base, or by
another method.
"""

import json
import shutil
from pathlib import Path

import pytest
from study_examples import FACTS, ONE_TEXT, TEMPLATES, assert_same_study, records

from jaxedit.files import to_json
from jaxedit.study.config import default_config, editor_config, plain_config
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study
from jaxedit.study.run_config import read_run_config, replay_config

HYPER = dict(layer=3, v_num_grad_steps=4, context_templates=TEMPLATES)


@pytest.fixture(scope="module")
def configured(study_config):
    """A configuration with keys of every kind."""
    guard = dict(max_ppl_ratio=1e300, action="keep")
    evaluation = dict(prompts=("Once upon a time",), kl_every=2)
    return study_config("rome", FACTS[:3], ONE_TEXT, HYPER, evaluation, guard=guard)


@pytest.fixture(scope="module")
def studied(configured, tmp_path_factory):
    return run_study(configured, tmp_path_factory.mktemp("studied") / "run")


def test_a_configuration_comes_back_from_a_run(configured, studied):
    again, expected = read_run_config(read_journal(studied)), plain_config(configured)
    expected["eval"]["bos"] = False  # what the tokenizer says
    assert plain_config(again) == expected
    assert again.guard.max_ppl_ratio == 1e300


def test_a_replay_with_nothing_else_is_the_same_study(studied, tmp_path):
    """Bit for bit, files and run.json too."""
    config = replay_config(read_journal(studied))
    assert_same_study(run_study(config, tmp_path / "again"), studied)


def test_a_second_base_is_asked_the_same(studied, shared, configured, tmp_path):
    """Its study is the one that is configured for it by hand, and of its model."""
    llama = str(shared / "golden" / "llama")
    journal = read_journal(studied)
    with pytest.raises(ValueError, match=r"no layer is published for rome on .*llama"):
        run_study(replay_config(journal, llama), tmp_path / "none")  # not the layer of the first
    config = replay_config(journal, llama, ["editor.layer=2", "editor.v_lr=0.25"])
    assert config.eval.bos is None
    found = run_study(config, tmp_path / "found")

    by_hand = default_config("rome", **{**HYPER, "layer": 2, "v_lr": 0.25})
    by_hand.update(model=llama, facts=configured.facts, texts=configured.texts)
    by_hand.guard.update(max_ppl_ratio=1e300, action="keep")
    by_hand.eval.update(prompts=("Once upon a time",), kl_every=2)
    assert_same_study(found, run_study(by_hand, tmp_path / "by-hand"))
    steps = [step.record for step in read_journal(found).steps[1:]]
    assert [record.subject for record in steps] == [fact["subject"] for fact in FACTS[:3]]
    assert read_journal(found).run["model_fingerprint"] != journal.run["model_fingerprint"]
    assert records(found)[1] != records(studied)[1]


def test_another_method_begins_with_its_own_defaults(studied):
    """But for what is set, in whatever order; all other keys are the study's."""
    overrides = ["editor.layers=[2,3]", "editor.method=memit", "n_facts=2"]
    config = replay_config(read_journal(studied), overrides=overrides)
    expected = editor_config("memit", layers=(2, 3)).to_dict()
    assert config.editor.to_dict() == expected
    assert (config.n_facts, config.eval.kl_every) == (2, 2)
    with pytest.raises(ValueError, match=r"editor\.layer=3: expected KEY=VALUE with a key"):
        replay_config(read_journal(studied), overrides=["editor.method=memit", "editor.layer=3"])
    with pytest.raises(ValueError, match="unknown method 'memitt'"):
        replay_config(read_journal(studied), overrides=["editor.method=memitt"])


def test_other_facts_are_refused(studied, tmp_path):
    """By what they are, not by the file's name."""
    facts = Path(read_journal(studied).run["config"]["facts"])
    moved, other = tmp_path / "moved.json", tmp_path / "other.json"
    shutil.copy(facts, moved)
    other.write_text(json.dumps([*json.loads(facts.read_text()), FACTS[3]]), encoding="utf-8")
    config = replay_config(read_journal(studied), overrides=[f"facts={moved}"])
    assert config.facts == str(moved)
    with pytest.raises(ValueError, match=r"other\.json does not hold the facts of .* --set=facts="):
        replay_config(read_journal(studied), overrides=[f"facts={other}"])


def test_the_runs_configuration_is_json_that_a_study_takes(studied):
    """Lists are tuples again: what is written of it is the same."""
    journal = read_journal(studied)
    assert to_json(plain_config(read_run_config(journal))) == journal.run["config"]
