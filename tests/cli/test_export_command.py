"""`jaxedit export`: of a study or a saved edit, with what it says of wrong input."""

import errno
import json
import os
import shutil

import huggingface_hub
import pytest
from command_examples import FACTS, TEXTS
from reference.strict_json import read_strict_json
from rewritten import rewrite_lines, rewrite_run
from safetensors.numpy import load_file

from jaxedit.cli import _main
from jaxedit.edits.edit import read_edit
from jaxedit.study.edited import open_run, with_record
from jaxedit.study.loop import run_study

A, B = (f"base_model.model.transformer.h.3.mlp.c_proj.lora_{side}.weight" for side in "AB")


@pytest.fixture(scope="module")
def studied(study_config, tmp_path_factory):
    """The folder of a study of three facts, whose edits are all kept."""
    hyper = dict(layer=3, v_num_grad_steps=3, context_templates=("{}", "I am. {}"))
    config = study_config("rome", FACTS, TEXTS, hyper, guard=dict(action="keep"))
    return run_study(config, tmp_path_factory.mktemp("study") / "run")


@pytest.fixture
def run(monkeypatch, capsys):
    """Make a function: arguments -> exit status, standard output, standard error."""
    monkeypatch.setattr(_main, "enable_compilation_cache", lambda: None)

    def command(*arguments) -> tuple[int, str, str]:
        status = _main.run(["jaxedit", "export", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


@pytest.fixture
def refused(run, tmp_path):
    """Make a function: arguments -> the line that refuses them; nothing is written."""

    def command(*arguments) -> str:
        before = sorted(tmp_path.rglob("*"))
        status, out, err = run(*arguments, f"--out={tmp_path / 'out'}")
        assert (status, out) == (2, "")
        *said, line = err.splitlines()
        assert not any("Traceback" in each for each in said)
        assert sorted(tmp_path.rglob("*")) == before
        return line.removeprefix("jaxedit: error: ")

    return command


def factors(folder) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def test_a_study_is_exported(studied, run, tmp_path):
    """All its kept edits side by side, in JSON what was written."""
    status, out, err = run(studied, f"--out={tmp_path / 'edited'}", "--json")
    assert status == 0, err
    found = read_strict_json(out)
    assert found["format"] == "peft"
    assert [(each["layer"], each["rank"]) for each in found["weights"]] == [(3, 3)]
    assert found["url"] is None
    assert "with 3 edits" in err
    edits = [read_edit(studied / "steps" / f"00000{i}.safetensors") for i in (1, 2, 3)]
    arrays = factors(tmp_path / "edited")
    product = arrays[B] @ arrays[A]
    expected = sum(edit.deltas[0].u_FR @ edit.deltas[0].v_RD for edit in edits).T
    assert abs(product - expected).max() < 1e-6 * abs(expected).max()

    # The card: facts, perplexity, the guard's verdicts.
    card = (tmp_path / "edited" / "README.md").read_text()
    assert "3 edits, 3 facts, written by rome" in card
    for number, fact in enumerate(FACTS, start=1):
        prompt = fact["prompt"].format(fact["subject"])
        prompt = prompt.replace("[bold]", r"\[bold\]")
        assert f"| {number} | {prompt} | {fact['target_new']} |" in card
    assert card.count("| kept |") == 3
    after = open_run(studied).records[-1].perplexity
    assert after is not None
    assert f"- edited: {after['mean']:.4g}" in card


def test_some_steps_or_those_up_to_one(studied, run, tmp_path):
    cases = {"--after_step=2": (1, 2), "--run_steps=3": (3,), "--run_steps=1-2": (1, 2)}
    for flag, steps in cases.items():
        out = tmp_path / flag.strip("-")
        status, _, err = run(studied, flag, f"--out={out}")
        assert status == 0, err
        assert factors(out)[A].shape[0] == len(steps)
        assert json.loads((out / "jaxedit.json").read_text())["run_steps"] == list(steps)


def test_a_saved_edit_is_exported(studied, run, tmp_path):
    """Named as the argument or by --edit; the table names its weight."""
    one = open_run(studied, run_steps=[2])
    with_record(one.model.metadata.history[0], one).save(tmp_path / "edit.safetensors")
    for argument in (tmp_path / "edit.safetensors", f"--edit={tmp_path / 'edit.safetensors'}"):
        shutil.rmtree(tmp_path / "edited", ignore_errors=True)
        status, out, err = run(argument, f"--out={tmp_path / 'edited'}", "--dtype=bfloat16")
        assert status == 0, err
        (row,) = [line.split() for line in out.splitlines() if "c_proj" in line]
        assert row[:3] == ["transformer.h.3.mlp.c_proj.weight", "3", "1"]
        assert 0 < float(row[3]) < 1
        assert "PeftModel.from_pretrained" in out
        assert "vLLM serves no LoRA adapters for gpt2: use --format=hf" in out
        assert r"Bob \[bold\] lives in" in (tmp_path / "edited" / "README.md").read_text()


def test_wrong_arguments_are_refused(studied, refused, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for arguments, message in (
        ((), "name what to export: a study's work directory, or a saved edit"),
        ((studied, f"--run={studied}"), "and --run or --edit exclude each other"),
        ((studied, "--rank=0"), "--rank=0: the rank of a factorisation is at least 1"),
        ((studied, "--format=perf"), "unknown format 'perf'; did you mean 'peft'?"),
        ((studied, "--dtype=float8"), "--dtype=float8; did you mean 'float"),
        ((studied, "--push=owner/name"), "--push=owner/name needs a token of the hub"),
        ((studied, "--run_steps=7"), "has no edit 7; it has 1 to 3"),
        ((studied / "nothing",), "cannot be read as an edit"),
    ):
        assert message in refused(*arguments), arguments


def test_a_folder_that_is_not_empty_is_refused(studied, run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    status, _, err = run(studied, f"--out={tmp_path}")
    assert (status, err.count("\n")) == (2, 1)  # before a model is loaded
    assert "is there and not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    status, _, err = run(studied)
    assert status == 2
    assert "--out is missing" in err


def test_runs_that_cannot_be_exported_are_refused(studied, refused, tmp_path):
    """Of another base, of one that moved on, without edits, with journals of whole weights."""
    other = shutil.copytree(studied, tmp_path / "run")
    written = rewrite_run(other, model_fingerprint="0" * 16)
    assert "its weights are others now" in refused(other)
    dense = {"config": written["config"] | {"journal_dense_every": 2}}
    rewrite_run(other, **written | dense)
    assert "and no edit by itself" in refused(other, "--run_steps=1")
    rewrite_run(other, **written)
    rewrite_lines(other, lambda line: line["step"] and line.update(kept=False))
    assert "has no edits, so there is nothing to export" in refused(other)


def test_a_saved_edit_of_another_base_is_refused(studied, refused, tmp_path, shared):
    one = open_run(studied, run_steps=[2])
    with_record(one.model.metadata.history[0], one).save(tmp_path / "edit.safetensors")
    line = refused(tmp_path / "edit.safetensors", f"--model={shared / 'golden' / 'gptj'}")
    assert "the edit was made on weights with the fingerprint" in line


def test_no_space_is_one_line(studied, refused, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "could not be written, and nothing of it is left (No space left" in refused(studied)
