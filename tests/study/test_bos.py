"""Texts are scored behind a begin-of-text token where a model's tokenizer always adds one."""

import json
import logging

import pytest
from reference.models import write_gguf
from run_command import run_command
from study_examples import FACTS, TEMPLATES, TEXTS

import jaxedit
from jaxedit.metrics.perplexity import perplexity
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

HYPER = dict(layer=1, v_num_grad_steps=3, context_templates=TEMPLATES, mom2_adjustment=False)


@pytest.fixture(scope="module")
def path(tiny_checkpoint, tmp_path_factory) -> str:
    """Write a tiny llama whose tokenizer adds a begin-of-text token."""
    path = tmp_path_factory.mktemp("bos") / "tiny.gguf"
    write_gguf(path, tiny_checkpoint("llama"), change=lambda writer: writer.add_add_bos_token(True))
    return str(path)


@pytest.fixture
def run(path, study_config, tmp_path, caplog):
    """Make a function: eval.bos -> the journal of a study of two facts, and what was logged."""

    def study(bos):
        config = study_config("rome", FACTS[:2], TEXTS, HYPER, dict(bos=bos), model=path)
        with caplog.at_level(logging.INFO, logger="jaxedit"):
            return read_journal(run_study(config, tmp_path / str(bos)))

    return study


def test_a_study_scores_behind_the_token_and_says_the_other_number_once(run, path, caplog):
    journal = run(None)
    model = jaxedit.load(path)
    assert journal.run["config"]["eval"]["bos"] is True
    behind, without = (perplexity(model, TEXTS, bos=bos) for bos in (True, False))
    assert journal.steps[0].record.perplexity["mean"] == pytest.approx(behind.mean, rel=1e-6)
    assert behind.mean != pytest.approx(without.mean, rel=1e-3)
    assert (behind.n_tokens == without.n_tokens + 1).all()
    said = [text for text in caplog.messages if "without it, as in the paper" in text]
    assert said == [said[0]]
    assert said[0].endswith(f"the unedited perplexity is {without.mean:,.1f}")
    edited = jaxedit.apply(model, journal.steps[1].read_edit())
    measured = journal.steps[1].record.perplexity["mean"]
    assert measured == pytest.approx(perplexity(edited, TEXTS, bos=True).mean, rel=1e-5)


def test_a_study_scores_as_in_the_paper_where_it_is_told_to(run, path, caplog):
    journal = run(False)
    assert journal.run["config"]["eval"]["bos"] is False
    expected = perplexity(jaxedit.load(path), TEXTS).mean
    assert journal.steps[0].record.perplexity["mean"] == pytest.approx(expected, rel=1e-6)
    assert "without it, as in the paper" not in caplog.text


def test_the_edit_command_scores_behind_the_token_too(path, tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    given = {"model": path, "texts": tmp_path / "texts.json", "method": "rome"}
    given |= {"prompt": "{} lives in", "subject": "BP", "target": "French"}
    given["layer"], hyper = 1, {"v_num_grad_steps": 3, "mom2_adjustment": False}
    arguments = [f"--{name}={value}" for name, value in given.items()]
    arguments += [f"--set=editor.{name}={str(value).lower()}" for name, value in hyper.items()]
    done = run_command(tmp_path, "edit", *arguments, "--json")
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    expected = perplexity(jaxedit.load(path), TEXTS, bos=True).mean
    assert found["unedited"]["perplexity"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("flag", [None, "--bos", "--nobos"])
def test_the_ppl_command_scores_as_studies_do(path, tmp_path, flag):
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    arguments = [f"--model={path}", f"--texts={tmp_path / 'texts.json'}", *([flag] if flag else [])]
    done = run_command(tmp_path, "ppl", *arguments, "--json")
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert found["bos"] is (flag != "--nobos")
    expected = perplexity(jaxedit.load(path), TEXTS, bos=found["bos"]).mean
    assert found["mean"] == pytest.approx(expected, rel=1e-6)
