"""Commands that take arguments besides their flags, and those that take none."""

import contextlib

import pytest

from jaxedit.cli import _main, report


@pytest.fixture
def given(monkeypatch):
    """What `main` of `jaxedit report` was given; it does nothing else."""
    seen = []
    monkeypatch.setattr(report, "main", lambda *texts: seen.append((*texts, report.FLAGS.json)))
    monkeypatch.setattr(_main, "distributed_session", contextlib.nullcontext)
    monkeypatch.setattr(_main, "enable_compilation_cache", lambda: None)
    return seen


@pytest.mark.parametrize(
    ("names", "arguments", "expected"),
    [
        ((), ["--json"], (True,)),
        (("RUN", "[STEP]"), ["runs/a"], ("runs/a", False)),
        (("RUN", "[STEP]"), ["runs/a", "3", "--json"], ("runs/a", "3", True)),
        (("RUN", "[STEP]"), ["--json", "runs/a"], ("runs/a", True)),
        (("RUN", "STEP..."), ["a", "1", "--json", "2", "9"], ("a", "1", "2", "9", True)),
    ],
)
def test_main_is_given_the_arguments(given, monkeypatch, names, arguments, expected):
    """Flags may stand before, between and behind them."""
    if names:
        monkeypatch.setattr(report, "ARGUMENTS", names, raising=False)
    assert _main.run(["jaxedit", "report", *arguments]) == 0
    assert given == [expected]


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        ((), ["runs/a"], "unexpected argument 'runs/a'; flags are given as --name=value"),
        (("RUN", "[STEP]"), ["--json"], "RUN is missing; expected jaxedit report RUN [STEP]"),
        (("RUN", "STEP..."), ["a"], "STEP... is missing; expected jaxedit report RUN STEP..."),
        (("RUN", "[STEP]"), ["a", "1", "2"], "unexpected argument '2'; expected jaxedit report"),
    ],
)
def test_wrong_numbers_of_arguments(given, monkeypatch, capsys, names, arguments, message):
    if names:
        monkeypatch.setattr(report, "ARGUMENTS", names, raising=False)
    assert _main.run(["jaxedit", "report", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert given == []


def test_help_shows_the_arguments(monkeypatch, capsys):
    assert _main.run(["jaxedit", "report", "--help"]) == 0
    assert "Usage:" not in capsys.readouterr().out
    monkeypatch.setattr(report, "ARGUMENTS", ("RUN", "[STEP]"), raising=False)
    assert _main.run(["jaxedit", "report", "--help"]) == 0
    assert "\n\nUsage: jaxedit report RUN [STEP] [flags]\n\nFlags:\n" in capsys.readouterr().out
