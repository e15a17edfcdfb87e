"""Every command that runs a model runs an edited one by the same flags."""

import importlib

import pytest
from absl import flags
from command_examples import EDIT, FACTS, STUDY, TEXTS, refusal, result

import jaxedit
from jaxedit.cli._main import command_module, command_names

# Commands that run a model, so --run and --edit name an edited one there.
RUN_A_MODEL = {"bench", "edit", "eval", "export", "generate", "ppl", "screen", "study"}
NAMES = ("run", "run_steps", "after_step", "edit")


@pytest.fixture(scope="module")
def studied(run):
    done = run(*STUDY)
    assert done.returncode == 0, done.stderr
    return "run"


@pytest.fixture(scope="module")
def saved(run):
    done = run(*EDIT, "--save=bob.safetensors")
    assert done.returncode == 0, done.stderr
    return "bob.safetensors"


@pytest.mark.parametrize("name", sorted(RUN_A_MODEL & set(command_names())))
def test_commands_that_run_a_model_can_run_an_edited_one(name, monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FLAGS)
    module = importlib.import_module(command_module(name))
    before = set(flags.FLAGS)
    try:
        module.define_flags()
        assert set(NAMES) <= set(flags.FLAGS)
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)


def test_a_studys_model_is_measured(run, studied, folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = result(run("ppl", "--run=run", "--texts=texts.json", "--json"))
    model = jaxedit.edited_model(folder / "run")
    assert found["mean"] == jaxedit.perplexity(model, TEXTS).mean
    assert (found["model"], found["n_edits"]) == ("tiny", 3)
    some = result(run("ppl", "--run=run", "--run_steps=1-2", "--texts=texts.json", "--json"))
    two = jaxedit.edited_model(folder / "run", run_steps=[1, 2])
    assert some["mean"] == jaxedit.perplexity(two, TEXTS).mean


def test_a_saved_edit_speaks_and_says_what_it_is(run, saved, folder):
    done = run("generate", f"--edit={saved}", "--prompt=Bob lives in", "--max_new_tokens=4")
    model = jaxedit.apply(jaxedit.load(str(folder / "tiny")), jaxedit.Edit.load(folder / saved))
    assert done.stdout == jaxedit.generate(model, ["Bob lives in"], max_new_tokens=4)[0] + "\n"
    assert "tiny with 1 edit\n    Bob lives in → Munich\n" in done.stderr


def test_a_study_goes_on_from_a_studys_model(run, studied, folder, monkeypatch):
    monkeypatch.chdir(folder)
    more = [text for text in STUDY if text != "--workdir=run"]
    done = run(*more, "--workdir=more", "--run=run", "--after_step=1", "--config.n_facts=1")
    assert done.returncode == 0, done.stderr
    assert len(jaxedit.edited_model(folder / "more").metadata.history) == 2


def test_a_saved_edit_says_what_was_measured(run, saved, folder):
    record = jaxedit.Edit.load(folder / saved).record
    assert record["step"]["perplexity"]["mean"] == pytest.approx(
        record["unedited_ppl"] * record["step"]["perplexity"]["ratio"]
    )
    assert record["editor"]["v_num_grad_steps"] == 4
    assert record["model"] == "tiny"
    assert record["texts"] == "texts.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run=run", "--edit=bob.safetensors"], "--run and --edit exclude each other"),
        (["--run=run", "--model=tiny"], "--run and --model exclude each other"),
        (["--after_step=1"], "--run_steps and --after_step are a study's: give its --run"),
        (["--run=run", "--run_steps=1", "--after_step=1"], "exclude each other"),
        (["--run=run", "--run_steps=3-1"], "--run_steps=3-1: expected numbers of steps"),
        (["--run=run", "--run_steps=7"], f"has no edit 7; it has 1 to {len(FACTS)}"),
        (["--run=gone"], "gone is not a study's work directory"),
        (["--edit=gone.safetensors"], "gone.safetensors cannot be read as an edit"),
    ],
)
def test_edited_models_that_are_not_there_are_refused(run, studied, saved, arguments, message):
    assert message in refusal(run("ppl", "--texts=texts.json", *arguments))
