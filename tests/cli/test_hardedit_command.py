"""`jaxedit hardedit` with a server on this machine, and what it refuses."""

import json
import sys

import pytest
from local_chat import local_chat
from reference.strict_json import read_strict_json

from jaxedit.cli import _main

QUICK = (
    "--config.model=tiny",
    "--config.texts=texts.json",
    "--config.editor.layer=3",
    "--config.editor.v_num_grad_steps=3",
    "--config.editor.context_templates=('{}', 'I am. {}')",
    "--set=single_batch_size=2",
    "--round_size=2",
    "--workdir=search",
)
RECORDS = [
    dict(prompt="BP lives in", subject="BP", target_new="French", ground_truth="English"),
    dict(prompt="Bob lives in", subject="Bob", target_new="Munich", ground_truth="London"),
    dict(prompt="They live in", subject="Bob", target_new="Munich", ground_truth="London"),
]
USAGE = dict(prompt_tokens=100, completion_tokens=20, total_tokens=120)


@pytest.fixture
def hardedit(folder, monkeypatch, capsys):
    """A function: arguments -> exit status, output and errors, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(_main, "enable_compilation_cache", lambda: None)

    def call(*arguments: str):
        argv = ["jaxedit", "hardedit", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # for --config.KEY
        status = _main.run(argv)
        return status, *capsys.readouterr()

    return call


def test_what_a_server_writes_is_verified_counted_and_written(hardedit, folder):
    """Of the two facts those are written whose ratio is over the limit, here that of one."""
    with local_chat(json.dumps(RECORDS), usage=USAGE) as (address, requests):
        asking = f"--base_url={address}", "--server_model=writer", "--max_calls=1"
        status, output, errors = hardedit(*QUICK, *asking, "--examples=facts.json", "--json")
        assert status == 2  # the examples have no true answers
        assert "--examples=facts.json: no fact there has a true answer" in errors
        status, output, errors = hardedit(*QUICK, *asking, "--min_ratio=1.0001", "--json")
    assert status == 0, errors
    assert len(requests) == 1
    assert "asked 1 times: 2 candidates, 100 + 20 tokens" in errors
    found = read_strict_json(output)
    assert (found["n_candidates"], found["n_verified"], found["n_not_made"]) == (2, 2, 0)
    assert found["asked"] == {
        "n_calls": 1,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "n_uncounted": 0,
        "rejected": {"a prompt that does not begin with its subject": 1},
    }
    assert 1 <= found["n_hard"] == len(found["hard"])
    assert all(each["ratio"] > 1.0001 for each in found["hard"])
    written = json.loads((folder / "hardedit.json").read_text(encoding="utf-8"))
    assert [each["subject"] for each in written] == [each["subject"] for each in found["hard"]]

    # The same as a table, of what is on the disk: no server is asked.
    status, output, _ = hardedit(*QUICK, "--n_records=1", "--min_ratio=1.0001", "--out=again.json")
    assert status == 0
    assert (folder / "again.json").read_bytes() == (folder / "hardedit.json").read_bytes()
    assert "The server was asked 1 times: 100 tokens of prompts, 20 of completions." in output
    assert "rejected: 1 with a prompt that does not begin with its subject" in output
    assert f"{len(written)} of 2 edits took the perplexity over 1.0001 times" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base_url=http://localhost:1/v1"], "--base_url and --server_model go together"),
        (["--server_model=writer"], "--base_url and --server_model go together"),
        (["--examples=facts.json"], "--examples are shown to a server: give its --base_url"),
        (["--min_ratio=1"], "--min_ratio=1.0: expected a number over 1"),
        (["--config.facts=facts.json"], "facts=facts.json: this command makes its facts itself"),
    ],
)
def test_wrong_flags_are_named(hardedit, arguments, message):
    status, output, errors = hardedit(*QUICK, *arguments, "--workdir=none")
    assert (status, output) == (2, "")
    assert message in errors


def test_a_server_that_is_away_is_named(hardedit):
    away = "--base_url=http://127.0.0.1:9/v1", "--server_model=writer", "--workdir=away"
    status, _, errors = hardedit(*QUICK, *away)
    assert status == 2
    assert "the writer of records writer at http://127.0.0.1:9/v1 could not be asked" in errors
    assert "run the same command again to go on" in errors
