"""A study's numbers in trackers, read back from what each library wrote without a network.

Trackio's is in tests/big/trackio_runs.py: its package cannot be installed beside the others.
"""

import dataclasses
import importlib.util
import json
import math
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from journals import NOT_POSSIBLE, STEPS, baseline, measured
from tracked_runs import READERS

from jaxedit.reports.trackers import tracker_names
from jaxedit.reports.tracking import SCALARS, StudyTracking, scalars
from jaxedit.study.record import StepRecord

RECORD = dataclasses.replace(
    measured(3, "BP", "Munich", 26.0, relative_perturbation=0.02, kl_nats=0.1),
    edit_norm=math.inf,
    time_s={"edit": 5.0},
)
RECORDS = [baseline(167.3), *STEPS[:2], RECORD, *STEPS[3:]]
CONFIG = {"model": "tiny", "n_facts": 2, "editor": {"method": "rome", "v_lr": 0.5}}


ENDED = {"tensorboard": (None, None), "wandb": (1, 0), "mlflow": ("KILLED", "FINISHED")}
CONFIGS = {
    "tensorboard": {},
    "wandb": CONFIG | {"n_facts": 7},
    "mlflow": {"model": "tiny", "n_facts": "2", "editor.method": "rome", "editor.v_lr": "0.5"},
}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Have the trackers write below the test's folder, and not ask for a login."""
    import wandb

    for name in ("WANDB_PROJECT", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    wandb.teardown()  # it reads its settings once


def numbers_of(records: list[StepRecord]) -> dict[tuple[int, str], float]:
    return {(each.step, name): n for each in records for name, n in scalars(each).items()}


class Interruption(Exception):
    """What ends a study in a test."""


def track(folder: Path, trackers: list[str], records: list[StepRecord], n_facts: int = 7) -> None:
    with StudyTracking(trackers, "run", folder, CONFIG | {"n_facts": n_facts}) as tracking:
        for record in records:
            tracking.write_step(record)


def interrupt(folder: Path, tracker: str, records: list[StepRecord]) -> None:
    with StudyTracking([tracker], "run", folder, CONFIG) as tracking:
        assert not folder.exists()
        for record in records:
            tracking.write_step(record)
        raise Interruption


MLFLOW = pytest.param("mlflow", marks=pytest.mark.slow)  # its database takes seconds to make


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", MLFLOW])
def test_a_study_that_goes_on_has_each_number_once_in_one_run(tracker, offline, tmp_path):
    """It is interrupted after step 3; all its steps are told again, as a resumed study does."""
    folder = tmp_path / "run"
    with pytest.raises(Interruption):
        interrupt(folder, tracker, RECORDS[:4])
    interrupted = READERS[tracker](folder)
    time.sleep(1.1)  # the names of TensorBoard's files have seconds
    track(folder, [tracker], RECORDS)
    found = READERS[tracker](folder)

    expected = numbers_of(RECORDS)
    assert len(expected) > 50
    assert Counter((step, name) for step, name, _ in found.values) == Counter(expected.keys())
    for step, name, value in found.values:
        number = expected[step, name]
        if math.isinf(number):
            assert value > 1e300  # MLflow's databases hold the largest number there is
        else:
            assert value == pytest.approx(number, rel=1e-6)  # TensorBoard holds float32
    assert {step for step, *_ in interrupted.values} == {0, 1, 2, 3}
    assert found.ids == interrupted.ids
    assert (interrupted.ended, found.ended) == ENDED[tracker]
    held = {name: found.config.get(name) for name in CONFIGS[tracker]}
    assert held == CONFIGS[tracker]


def test_a_tracker_that_is_named_later_gets_all_steps(offline, tmp_path):
    folder = tmp_path / "run"
    track(folder, ["tensorboard"], RECORDS[:3])
    track(folder, ["wandb", "tensorboard"], RECORDS)
    for tracker in ("tensorboard", "wandb"):
        values = READERS[tracker](folder).values
        assert Counter((s, n) for s, n, _ in values) == Counter(numbers_of(RECORDS).keys())


def test_events_are_there_while_the_study_runs(tmp_path):
    with StudyTracking(["tensorboard"], "run", tmp_path, CONFIG) as tracking:
        assert not list(tmp_path.iterdir())
        tracking.write_step(RECORDS[0])
        (path,) = (tmp_path / "events").iterdir()
        assert path.stat().st_size > 0


def test_a_login_that_is_not_there_is_said_at_the_first_step(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    message = r"wandb did not begin a run \(.*(API key|api_key).*WANDB_MODE=offline"
    with pytest.raises(ValueError, match=message):
        track(tmp_path / "run", ["wandb"], RECORDS)


@pytest.mark.slow
def test_a_run_that_is_gone_is_said(offline, tmp_path):
    state = {"mlflow": {"run_id": "0" * 32, "next_step": 3}}
    (tmp_path / "tracked.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mlflow did not begin a run \(Run .*0000.* not found"):
        track(tmp_path, ["mlflow"], RECORDS)


def test_an_unknown_tracker_is_named_with_the_known_ones(tmp_path):
    message = "unknown tracker 'wandbb'; did you mean 'wandb'.*mlflow, tensorboard, trackio, wandb"
    with pytest.raises(ValueError, match=message):
        StudyTracking(["tensorboard", "wandbb"], "run", tmp_path, CONFIG)


@pytest.mark.parametrize("tracker", tracker_names())
def test_a_package_that_is_not_there_is_named_with_the_command(tracker, tmp_path, monkeypatch):
    """Before a step is made; the command installs an extra that there is."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"pip install 'jaxedit\[{tracker}\]'$"):
        StudyTracking([tracker], "run", tmp_path, CONFIG)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert tracker in project["optional-dependencies"]


# What is written


def test_the_numbers_of_a_record_by_name():
    assert scalars(RECORD) == {
        "perplexity/mean": 26.0,
        "perplexity/ratio": 26 / 25,
        "perplexity/delta_nll_nats": math.log(26 / 25),
        "metrics/probability_new": 0.9,
        "metrics/efficacy_accuracy": 1.0,
        "edit/norm": math.inf,
        "edit/relative_perturbation": 0.02,
        "edit/denominator": 0.51 * 3,
        "edit/loss": 0.04,
        "model/kl_nats": 0.1,
        "time_s/edit": 5.0,
    }


def test_a_record_without_numbers_has_none():
    assert scalars(dataclasses.replace(NOT_POSSIBLE, time_s={})) == {}


def test_every_number_is_one_that_a_record_has():
    fields = {field.name for field in dataclasses.fields(StepRecord)}
    assert {path[0] for path in SCALARS.values()} <= fields
