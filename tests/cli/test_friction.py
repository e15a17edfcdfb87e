"""Flags beyond their range, no device, an output of few letters, ~ behind a =."""

import json
import os
import subprocess
import sys

import pytest
from command_examples import EDIT, refusal

from jaxedit.cli._main import run as run_here

PYTHON = [sys.executable, "-m", "jaxedit"]


def refused_here(capsys, monkeypatch, *arguments: str) -> str:
    """What a command says of wrong input, run in this process."""
    monkeypatch.setattr(sys, "argv", ["jaxedit", *arguments])
    assert run_here(["jaxedit", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    return said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ppl", "--dtype=nonsense"], "'nonsense': weights are stored as float32 or bfloat16"),
        (["study", "--config.dtype=nonsense"], "'nonsense': weights are stored as float32"),
        (["study", "--config.editor.layers=builtin"], "layers=builtin: the configuration has no"),
        (["study", "--config.facts_per_edit=2"], "facts_per_edit=2: rome writes one fact"),
        (["study", "--config.editor.v_lr=nan"], "v_lr=nan: expected a positive number"),
        (["study", "--set=guard.max_ppl_ratio=Infinity"], "guard.max_ppl_ratio=inf: expected"),
        (["edit", *EDIT[4:], "--set=editor.kl_factor=-5"], "kl_factor=-5.0: expected"),
        (["screen", "--threshold=nan"], "--threshold=nan: expected a positive number"),
        (["screen", "--top=-1"], "--top"),
        (["check", "adapter", "--limit=-1"], "--limit"),
        (["eval", "--num_fewshot=-1"], "--num_fewshot"),
        (["surrogate", "--limit=0"], "--limit"),
        (["bench", "--n_requests=-1"], "--n_requests"),
        (["stats", "--max_texts=-1"], "--max_texts"),
        (["plan", "--row_tokens=0"], "--row_tokens"),
        (["ppl", "--mesh=data:²"], "'data:²' is not one of"),
        (["study", "--config=\x1b[31m"], "\\u001b[31m is not a configuration"),
    ],
)
def test_what_cannot_be_meant_is_one_line(capsys, monkeypatch, arguments, says):
    assert says in refused_here(capsys, monkeypatch, *arguments)


@pytest.mark.parametrize("command", ["ppl", "doctor"])
def test_a_platform_without_a_device_is_one_line(command):
    env = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run([*PYTHON, command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert "finds no device" in done.stderr
    assert "JAX_PLATFORMS=cpu runs on the CPU" in done.stderr + done.stdout


def test_an_output_of_few_letters_gets_escapes(folder):
    """And so does JSON, which is read back as what it was."""
    changed = ["--subject=Zürich \x1b[31m", "--target=Łódź"]
    env = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    for more in ([], ["--json"]):
        arguments = [*PYTHON, *EDIT, *changed, *more]
        done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"\x1b" not in done.stdout
        text = done.stdout.decode("cp1252")
        if more:
            assert json.loads(text)["request"] == "Zürich \x1b[31m lives in → Łódź"
            assert text.isascii()
        else:
            assert "\\u2192" in text
            assert "\\u001b[31m" in text


def test_a_tilde_behind_an_equals_sign_is_the_home(folder, tmp_path):
    (tmp_path / "t.json").write_bytes((folder / "texts.json").read_bytes())
    given = [each for each in EDIT if not each.startswith("--texts")]
    env = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [*PYTHON, *given, "--texts=~/t.json", "--save=~/e.safetensors"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "e.safetensors").is_file()
    assert not (folder / "~").exists()
    missing = [*PYTHON, "show", "~/nowhere"]
    done = subprocess.run(missing, env=env, capture_output=True, text=True, check=False)
    assert str(tmp_path / "nowhere") in refusal(done)
