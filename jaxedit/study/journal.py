"""The journal of a study: append-only, and what its model and editor's state are rebuilt from.

    WORKDIR/run.json                  what the study is: schema, configuration, model, facts, texts
    WORKDIR/journal.jsonl             one line a step or undo (`jaxedit.study.record.StepRecord`)
    WORKDIR/steps/000001.safetensors  the step's arrays: the edit's factors, what the editor's
                                      state learnt

A step's arrays are on disk before its line is, and a line is whole or not there: whatever
interrupts a study, the next run goes on after the last whole step. Numbers that are not finite are
written as the strings "inf" and "nan". A journal of an older schema is upgraded
(`jaxedit.study.upgrade`): in memory where it is only read, on the disk where a study goes on.
"""

import dataclasses
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.files import LOCK_FILES, flatten_keys, to_json, to_safetensors, write_atomic
from jaxedit.study.record import SCHEMA, StepRecord, mark_undone
from jaxedit.study.upgrade import upgrade_line, upgrade_run


class Step(NamedTuple):
    """One line of the journal and where its arrays are."""

    record: StepRecord
    arrays: Path


@dataclasses.dataclass(frozen=True)
class Journal:
    """A study's folder.

    `steps` are the whole steps that it held when opened, the baseline first, as they stand after
    all undos (`mark_undone`).
    """

    folder: Path
    run: dict[str, Any]
    steps: list[Step]

    def append(
        self,
        record: StepRecord,
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
    ) -> None:
        """Write one step, first its arrays, then its line; both reach the disk before it returns.

        Raises:
          OSError: where the disk is full or not writable; the journal then ends with the step
            before.
        """
        path = self.folder / "steps" / f"{record.step:06d}.safetensors"
        content = _line(dataclasses.replace(record, arrays=f"steps/{path.name}"))
        try:
            write_atomic(path, to_safetensors(arrays, metadata))
            _append_line(self.folder / "journal.jsonl", content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"step {record.step} could not be written to {self.folder} ({error.strerror}); "
                "the steps before it are whole: make room and run the same command again to go on",
            ) from error

    def append_undo(self, steps: Sequence[int]) -> None:
        """Write that the model lacks the edits of these steps from here on; nothing is erased.

        Raises:
          OSError: where the line cannot be written; there is no undo then.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        last = self.steps[-1].record.step
        record = StepRecord(kind="undo", step=last, undone=list(steps), written_at=now)
        _append_line(self.folder / "journal.jsonl", _line(record))

    def truncate(self, n_steps: int) -> "Journal":
        """Keep the first `n_steps` steps, on the disk as well; the others are to be done again.

        Each line is a step in the journals that are cut: those of single edits, and of whole
        matrices every k edits. Nothing can be undone there.
        """
        lines = self.folder / "journal.jsonl"
        if len(self.steps) > n_steps:
            kept = lines.read_bytes().splitlines(keepends=True)[:n_steps]
            os.truncate(lines, sum(map(len, kept)))
        return dataclasses.replace(self, steps=self.steps[:n_steps])


def open_journal(folder: Path, run: Mapping[str, Any], may_differ: tuple[str, ...] = ()) -> Journal:
    """Open a study's folder to go on with it, or make it.

    Args:
      folder: the work directory.
      run: what the study is, as nested dictionaries of plain values; the schema is added.
      may_differ: dotted keys of `run` that a later run may change.

    Raises:
      ValueError: where the folder belongs to another study (the message names the keys that
        differ), or its journal is damaged other than at its end.
      OSError: where it cannot be written.
    """
    run_now: dict[str, Any] = {"schema": SCHEMA} | to_json(dict(run))
    path = folder / "run.json"
    if path.exists():
        written = _read_run(folder)
        run_then = upgrade_run(written)
        _check_same_study(folder, run_then, run_now, may_differ)
        records = _read_records(folder, run_then, repair=True)
        if written.get("schema") != SCHEMA:  # first the journal: its upgraded lines are known
            write_atomic(folder / "journal.jsonl", b"".join(map(_line, records)))
        if written != run_now:
            write_atomic(path, _pretty(run_now))
        return Journal(folder, run_now, _steps_of(folder, records))
    check_workdir(folder)
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    write_atomic(path, _pretty(run_now))
    return Journal(folder, run_now, _steps_of(folder, _read_records(folder, run_now, repair=True)))


def read_journal(folder: Path) -> Journal:
    """Open a study's folder for reading only.

    Raises:
      ValueError: where it is not one, or was written by a newer version.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not a study's work directory: it has no run.json")
    run = upgrade_run(_read_run(folder))
    return Journal(folder, run, _steps_of(folder, _read_records(folder, run, repair=False)))


def check_workdir(folder: Path) -> None:
    """Check that a folder is a study's, or that one may be begun there.

    Raises:
      ValueError: where it holds other things.
    """
    if not folder.exists() or (folder / "run.json").exists():
        return
    for path in folder.iterdir():
        empty = path.name == "steps" and not any(path.iterdir())
        if not empty and path.name not in {"run.json.part", *LOCK_FILES}:
            why = "is not empty and is not a study's work directory; give another --workdir"
            raise ValueError(f"{folder} {why}")


def find_step(journal: Journal, number: int) -> Step:
    """Find an edit's step in a journal.

    Raises:
      ValueError: where it is not there.
    """
    edits = journal.steps[1:]
    found = next((step for step in edits if step.record.step == number), None)
    if found is None:
        known = f"it has 1 to {len(edits)}" if edits else "it has none yet"
        raise ValueError(f"{journal.folder} has no edit {number}; {known}")
    return found


def _steps_of(folder: Path, records: list[StepRecord]) -> list[Step]:
    """Return the steps that the lines of a journal tell of, as they stand after all undos.

    Raises:
      ValueError: where an undo names an edit that is not kept there.
    """
    try:
        steps = mark_undone(records)
    except ValueError as error:
        raise ValueError(f"{folder / 'journal.jsonl'}: {error}; restore it from a copy") from error
    return [Step(record, folder / str(record.arrays)) for record in steps]


def _append_line(path: Path, content: bytes) -> None:
    """Write a line to the end of a file and to the disk, or leave the file as it was."""
    n_bytes_before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if path.exists() and path.stat().st_size > n_bytes_before:
            os.truncate(path, n_bytes_before)
        raise


def _read_records(folder: Path, run: Mapping[str, Any], repair: bool) -> list[StepRecord]:
    """Read the whole lines of a journal; a last line that was cut short is left out.

    Args:
      folder: the work directory.
      run: the upgraded content of run.json.
      repair: whether the line that was cut short is also cut off the file.

    Raises:
      ValueError: where a line before the last is damaged, or a step's arrays are gone.
    """
    path = folder / "journal.jsonl"
    if not path.exists():
        return []

    # Line by line: what was cut short is the end, and damage before it an error.
    records: list[StepRecord] = []
    content = path.read_bytes()
    at = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        record = _parse(path, number, line, run)
        if record is None:
            if at + len(line) < len(content):
                raise ValueError(
                    f"{path}, line {number} is damaged, and more lines follow; restore it from a "
                    "copy"
                )
            if repair:
                os.truncate(path, at)
            break
        if record.arrays is not None and not (folder / record.arrays).is_file():
            raise ValueError(
                f"{path}, line {number} names {record.arrays}, which is gone; restore it from a "
                "copy"
            )
        records.append(record)
        at += len(line)
    return records


def _parse(path: Path, number: int, line: bytes, run: Mapping[str, Any]) -> StepRecord | None:
    """Parse a line as a record; None where it is not whole."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(values, dict) or not {"arrays", "undone"} & set(values):
        return None
    try:
        return StepRecord.from_dict(upgrade_line(values, run))
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is no step of a study: {error}") from error


def _read_run(folder: Path) -> dict[str, Any]:
    """Read run.json.

    Raises:
      ValueError: where it is not JSON, or of a newer schema.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}): is {folder} a study's work directory?"
        ) from error
    run = run if isinstance(run, dict) else {}
    schema = run.get("schema", 0)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(
            f"{path} has schema {schema!r}; this version of jaxedit reads 0 to {SCHEMA}. A newer "
            "version wrote it: update jaxedit"
        )
    return run


def _check_same_study(
    folder: Path, then: Mapping[str, Any], now: Mapping[str, Any], may_differ: tuple[str, ...]
) -> None:
    """Raise a ValueError that names the keys in which two runs differ."""
    a, b = flatten_keys(then), flatten_keys(now)
    differing = sorted(
        key for key in {*a, *b} if a.get(key) != b.get(key) and not key.startswith(may_differ)
    )
    if not differing:
        return
    shown = "; ".join(
        f"{key}: {_shorten(a.get(key))} there, {_shorten(b.get(key))} now" for key in differing[:6]
    )
    raise ValueError(
        f"{folder} belongs to another study. {shown}. Give another --workdir, or the same "
        "configuration"
    )


def _line(record: StepRecord) -> bytes:
    return (json.dumps(to_json(record.to_dict()), ensure_ascii=False) + "\n").encode()


def _pretty(run: Mapping[str, Any]) -> bytes:
    return (json.dumps(run, indent=2, ensure_ascii=False) + "\n").encode()


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
