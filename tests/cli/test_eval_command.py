"""`jaxedit eval`: what it hands on, and what it refuses before it loads a model."""

import contextlib
from pathlib import Path

import pytest

from jaxedit.cli import _main, eval
from jaxedit.metrics import downstream
from jaxedit.metrics.downstream import PromptSettings


@pytest.fixture
def evaluated(golden, monkeypatch):
    """What the evaluation was given; it does nothing else."""
    seen = []

    def evaluate(model, tasks, **settings):
        seen.append((tasks, settings))
        return {"piqa": {"acc": 0.5, "n": 3}}

    monkeypatch.setattr(eval, "load_model", lambda: golden("gpt2"))
    monkeypatch.setattr(downstream, "evaluate_tasks", evaluate)
    monkeypatch.setattr(_main, "distributed_session", contextlib.nullcontext)
    monkeypatch.setattr(_main, "enable_compilation_cache", lambda: None)
    return seen


def test_flags_reach_the_evaluation(evaluated, tmp_path):
    flags = ["--num_fewshot=2", "--apply_chat_template", "--seed=7", "--limit=3", "--log_samples"]
    command = ["jaxedit", "eval", "--tasks=piqa,mine", "--task_path=here", *flags]
    assert _main.run([*command, f"--output_path={tmp_path / 'out'}"]) == 0
    settings = dict(limit=3, task_path=Path("here"), prompts=PromptSettings(2, True, 7))
    settings |= dict(output_path=tmp_path / "out", log_samples=True)
    assert evaluated == [(["piqa", "mine"], settings)]


def test_without_them_lm_eval_decides(evaluated):
    assert _main.run(["jaxedit", "eval", "--tasks=piqa"]) == 0
    settings = dict(limit=None, task_path=None, prompts=PromptSettings(None, False, None))
    assert evaluated == [(["piqa"], settings | dict(output_path=None, log_samples=False))]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--log_samples"], "log_samples writes files: give an output_path"),
        (["--output_path={}/below"], "no files can be written there (Not a directory)"),
    ],
)
def test_what_cannot_be_written_is_said_first(
    evaluated, monkeypatch, capsys, tmp_path, flags, message
):
    monkeypatch.setattr(eval, "load_model", lambda: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    given = [flag.format(tmp_path / "file") for flag in flags]
    assert _main.run(["jaxedit", "eval", "--tasks=piqa", *given]) == 2
    assert message in capsys.readouterr().err
    assert evaluated == []
