"""TensorBoard events: what a record says, read back from the file's frames."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxedit.reports.tensorboard import TensorBoardWriter, scalars

RECORD = {
    "step": 3,
    "perplexity": {"mean": 170.5, "ratio": 1.02, "delta_nll_nats": 0.01},
    "fact": {"probability_new": 0.9, "greedy_new": True},
    "editor": {"denominator": 3.5, "loss": 0.2},
    "edit_norm": "inf",
    "time_s": {"edit": 5.0},
}


def read(path) -> list[Event]:
    """The events of a file: frames of length, checksum, content, checksum."""
    content, events, at = path.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack("<Q", content[at : at + 8])
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 16 + length
    return events


def test_scalars():
    found = scalars(RECORD)
    assert found["perplexity/mean"] == 170.5
    assert found["fact/greedy_new"] == 1.0
    assert found["edit/norm"] == float("inf")
    assert "time_s/perplexity" not in found
    assert scalars({"step": 1, "error": "not possible", "time_s": {}}) == {}


def test_events_are_there_while_the_study_runs(tmp_path):
    with TensorBoardWriter(tmp_path) as live:
        assert not list(tmp_path.iterdir())
        live.step({"step": 0, "perplexity": {"mean": 167.3}})
        live.step(RECORD)
        (path,) = (tmp_path / "events").iterdir()
        assert path.stat().st_size > 0
    found = {(e.step, v.tag): v.simple_value for e in read(path) for v in e.summary.value}
    assert found[0, "perplexity/mean"] == pytest.approx(167.3)
    assert found[3, "perplexity/mean"] == pytest.approx(170.5)
    assert found[3, "edit/norm"] == float("inf")
    assert len(found) == 1 + len(scalars(RECORD))
