"""Flags beyond their range, no device, outputs of few letters or that take nothing, ~."""

import json
import os
import subprocess
import sys

import pytest
from command_examples import EDIT, refusal
from run_command import run_command


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
def test_what_cannot_be_meant_is_one_line(tmp_path, arguments, says):
    assert says in refusal(run_command(tmp_path, *arguments))


@pytest.mark.parametrize("command", ["ppl", "doctor"])
def test_a_platform_without_a_device_is_one_line(command):
    env = os.environ | {"JAX_PLATFORMS": "cuda"}
    arguments = [sys.executable, "-m", "jaxedit", command]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert "finds no device" in done.stderr
    assert "JAX_PLATFORMS=cpu runs on the CPU" in done.stderr + done.stdout


def test_an_output_of_few_letters_gets_escapes(folder):
    """And so does JSON, which is read back as what it was."""
    changed = [*EDIT, "--subject=Zürich \x1b[31m", "--target=Łódź"]
    for arguments in (changed, [*changed, "--json"]):
        done = run_command(folder, *arguments, encoding="cp1252")
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        if "--json" in arguments:
            assert json.loads(done.stdout)["request"] == "Zürich \x1b[31m lives in → Łódź"
            assert done.stdout.isascii()
        else:
            assert "\\u2192" in done.stdout
            assert "\\u001b[31m" in done.stdout


def test_a_tilde_behind_an_equals_sign_is_the_home(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.json").write_bytes((folder / "texts.json").read_bytes())
    given = [each for each in EDIT if not each.startswith("--texts")]
    done = run_command(folder, *given, "--texts=~/t.json", "--save=~/e.safetensors")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "e.safetensors").is_file()
    assert not (folder / "~").exists()
    assert str(tmp_path / "nowhere") in refusal(run_command(folder, "show", "~/nowhere"))


def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "jaxedit", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_output_that_takes_nothing_is_one_line():
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "jaxedit", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert "No space left" in done.stderr.decode()


def test_a_closed_output_is_dropped():
    """A service may start a command without standard output."""
    command = f"exec {sys.executable} -m jaxedit configs >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
