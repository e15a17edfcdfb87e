"""TensorBoard events: what a record says, read back from the file's frames."""

import dataclasses
import math
import struct

import pytest
from journals import NOT_POSSIBLE, baseline, measured
from tensorboardX.proto.event_pb2 import Event

from jaxedit.reports.tensorboard import SCALARS, TensorBoardWriter, scalars
from jaxedit.study.record import StepRecord

RECORD = dataclasses.replace(
    measured(3, "BP", "Munich", 26.0, relative_perturbation=0.02, kl_nats=0.1),
    edit_norm=math.inf,
    time_s={"edit": 5.0},
)


def read_events(path) -> list[Event]:
    """Read the events of a file: frames of length, checksum, content, checksum."""
    content, events, at = path.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack("<Q", content[at : at + 8])
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 16 + length
    return events


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


def test_events_are_there_while_the_study_runs(tmp_path):
    with TensorBoardWriter(tmp_path) as writer:
        assert not list(tmp_path.iterdir())
        writer.write_step(baseline(167.3))
        writer.write_step(RECORD)
        (path,) = (tmp_path / "events").iterdir()
        assert path.stat().st_size > 0
    found = {(e.step, v.tag): v.simple_value for e in read_events(path) for v in e.summary.value}
    assert found[0, "perplexity/mean"] == pytest.approx(167.3)
    assert found[3, "perplexity/mean"] == pytest.approx(26.0)
    assert found[3, "edit/norm"] == math.inf
    assert len(found) == 1 + len(scalars(RECORD))
