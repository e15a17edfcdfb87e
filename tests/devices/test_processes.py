"""A study of two processes, one of which is killed, resumes to the same bits."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxedit
from jaxedit.edits.edit import read_edit
from jaxedit.edits.predicted_change import predict_change
from jaxedit.metrics.perplexity import prepare
from jaxedit.models.loss_probe import read_loss_probe
from jaxedit.study.journal import read_journal
from jaxedit.study.record import StepRecord

CONFIG = """
from jaxedit.study.config import default_config

def get_config():
    templates = ("{}", "I am. {}")
    config = default_config("rome", layer=3, v_num_grad_steps=5, context_templates=templates)
    config.update(model=MODEL, facts=FACTS, texts=TEXTS, mesh="data:2,model:4")
    config.guard.action = "keep"
    config.eval.prediction_draws = 2
    return config
"""
NAMES = ("BP", "Bob", "Ann", "Tim")
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a girl"]
PATIENCE_S = 300


@pytest.fixture(scope="module")
def config(shared, tmp_path_factory) -> Path:
    """Write a study's configuration, facts and texts."""
    folder = tmp_path_factory.mktemp("processes")
    fact = {"prompt": "{} lives in the city of", "target_new": "Paris"}
    facts = [{**fact, "subject": name} for name in NAMES]
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    places = {
        "MODEL": shared / "golden" / "gpt2",
        "FACTS": folder / "facts.json",
        "TEXTS": folder / "texts.json",
    }
    text = CONFIG
    for name, place in places.items():
        text = text.replace(name, repr(str(place)))
    (folder / "config.py").write_text(text)
    return folder / "config.py"


def start(config: Path, workdir: Path) -> list[subprocess.Popen]:
    """Start the same command in two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "XDG_CACHE_HOME": str(config.parent),
    }
    command = [sys.executable, "-m", "jaxedit", "study"]
    command += [f"--config={config}", f"--workdir={workdir}"]
    command += ["--distributed=on", f"--coordinator=localhost:{port}", "--num_processes=2"]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    return [subprocess.Popen([*command, f"--process_id={i}"], **pipes) for i in range(2)]


def finish(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors[-3000:]


def steps(workdir: Path) -> list[tuple[StepRecord, bytes]]:
    """Return each step's record, but for its times, and the content of its file."""
    found = []
    for step in read_journal(workdir).steps:
        record = dataclasses.replace(step.record, time_s=None)
        found.append((record, step.arrays.read_bytes()))
    return found


def test_a_killed_process_ends_the_run_and_the_run_resumes(config, shared, tmp_path):
    finish(start(config, tmp_path / "whole"))
    first, second = start(config, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    until = time.monotonic() + PATIENCE_S
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < until, "no step was made"
        assert first.poll() is None, first.stderr.read()[-3000:]
        time.sleep(0.02)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    _, errors = first.communicate(timeout=PATIENCE_S)
    assert first.returncode != 0
    assert "what was finished is kept, the same command goes on from there" in errors
    n_done = len(read_journal(tmp_path / "run").steps)
    assert 2 <= n_done < 1 + len(NAMES)
    finish(start(config, tmp_path / "run"))
    assert steps(tmp_path / "run") == steps(tmp_path / "whole")
    check_prediction(shared, tmp_path / "whole")


def check_prediction(shared, folder: Path) -> None:
    """Compare a prediction, made by processes with a text each, with one made here of all texts.

    The first order, since labels are drawn batch by batch, and a mesh makes batches of its own.
    """
    model = jaxedit.load(str(shared / "golden" / "gpt2"))
    probe = read_loss_probe(model, prepare(model, TEXTS), (("mlp/w_down", 3),), n_draws=2)
    first = read_journal(folder).steps[1]
    expected = predict_change(probe, read_edit(first.arrays)).mean_nats(0.0)
    assert first.record.predicted_change["first_nats"] == pytest.approx(expected, rel=1e-3)
