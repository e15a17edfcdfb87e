"""What experiment trackers wrote of a study, read back without them where that can be done."""

import json
import sqlite3
import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog


class Run:
    """What a tracker wrote of a run.

    Attributes:
      values: (step, name, value) of each number, as often as it was written.
      ids: the runs' names; one, where a study went on with its run.
      config: the configuration, as the tracker holds it.
      ended: how the run ended, in the tracker's own words.
    """

    def __init__(self):
        self.values: list[tuple[int, str, float]] = []
        self.ids: set[str] = set()
        self.config: dict = {}
        self.ended: object = None


def read_tensorboard(folder: Path) -> Run:
    """Read the events: frames of length, checksum, content, checksum. As TensorBoard does, forget
    those of a step from which a later session starts.
    """
    run = Run()
    for path in sorted((folder / "events").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + length])
            if event.session_log.status == SessionLog.START:
                run.values = [each for each in run.values if each[0] < event.step]
            run.values += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            at += 16 + length
    return run


def read_wandb(folder: Path) -> Run:
    """Read the files of offline runs: a head of 7 bytes, then blocks of 32 KiB that hold records,
    whole or in parts, each behind a checksum, its length and which part it is.
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # until then the files of a run that is over may lack something
    run = Run()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        content, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:  # the rest of a block is empty
                at += 32768 - at % 32768
                continue
            _, length, part = struct.unpack("<IHB", content[at : at + 7])
            whole += content[at + 7 : at + 7 + length]
            at += 7 + length
            if part in (1, 4):  # all of it, or the last part
                read_wandb_record(run, Record.FromString(whole))
                whole = b""
    return run


def read_wandb_record(run: Run, record) -> None:
    """Add to a run what one record says."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.ids.add(record.run.run_id)
    if kind in ("run", "config"):
        config = record.run.config if kind == "run" else record.config
        run.config |= {item.key: json.loads(item.value_json) for item in config.update if item.key}
    if kind == "exit":
        run.ended = record.exit.exit_code
    if kind == "history":
        numbers = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        step = numbers["_step"]
        run.values += [(step, key, n) for key, n in numbers.items() if not key.startswith("_")]


def read_mlflow(folder: Path) -> Run:
    """Read the runs of the experiment by MLflow's client."""
    from mlflow import MlflowClient

    run, client = Run(), MlflowClient()
    for found in client.search_runs([client.get_experiment_by_name("jaxedit").experiment_id]):
        run.ids.add(found.info.run_id)
        run.config, run.ended = found.data.params, found.info.status
        for name in found.data.metrics:
            history = client.get_metric_history(found.info.run_id, name)
            run.values += [(metric.step, name, metric.value) for metric in history]
    return run


def read_trackio(store: Path) -> Run:
    """Read the runs out of the database of Trackio's local store."""
    run = Run()
    database = sqlite3.connect(store / "jaxedit.db")
    for run_id, step, text in database.execute("SELECT run_id, step, metrics FROM metrics"):
        run.ids.add(run_id)
        run.values += [(step, name, float(value)) for name, value in json.loads(text).items()]
    for (text,) in database.execute("SELECT config FROM configs"):
        run.config |= json.loads(text)
    return run


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}
