"""The journal of a study: append-only, and what its model and editor's state are rebuilt from.

    WORKDIR/run.json                  what the study is: schema, configuration, model, facts, texts
    WORKDIR/journal.jsonl             one line a step (`jaxedit.study.record.StepRecord`)
    WORKDIR/steps/000001.safetensors  the step's arrays: the edit's factors, what the editor's
                                      state learnt

A step's arrays are on disk before its line is, and a line is whole or not there: whatever
interrupts a study, the next run goes on after the last whole step. Numbers that are not finite are
written as the strings "inf" and "nan". A journal of an older schema is upgraded
(`jaxedit.study.upgrade`): in memory where it is only read, on the disk where a study goes on.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.files import flatten_keys, partial_path, to_json, to_safetensors, write_atomic
from jaxedit.study.record import SCHEMA, StepRecord
from jaxedit.study.upgrade import upgrade_line, upgrade_run


class Step(NamedTuple):
    """One line of the journal and where its arrays are."""

    record: StepRecord
    arrays: Path


@dataclasses.dataclass(frozen=True)
class Journal:
    """A study's folder. `steps` are the whole steps it held when opened, the baseline first."""

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
        lines = self.folder / "journal.jsonl"
        content = _line(dataclasses.replace(record, arrays=f"steps/{path.name}"))
        n_bytes_before = lines.stat().st_size if lines.exists() else 0
        try:
            write_atomic(path, to_safetensors(arrays, metadata))
            with lines.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            partial_path(path).unlink(missing_ok=True)
            if lines.exists() and lines.stat().st_size > n_bytes_before:
                os.truncate(lines, n_bytes_before)
            raise OSError(
                error.errno,
                f"step {record.step} could not be written to {self.folder} ({error.strerror}); "
                "the steps before it are whole: make room and run the same command again to go on",
            ) from error

    def truncate(self, n_steps: int) -> "Journal":
        """Keep the first `n_steps` steps, on the disk as well; the others are to be done again."""
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
        steps = read_steps(folder, run_then, repair=True)
        if written.get("schema") != SCHEMA:  # first the journal: its upgraded lines are known
            write_atomic(folder / "journal.jsonl", b"".join(_line(step.record) for step in steps))
        if written != run_now:
            write_atomic(path, _pretty(run_now))
        return Journal(folder, run_now, steps)
    if folder.exists() and not _has_no_run_yet(folder):
        raise ValueError(
            f"{folder} is not empty and is not a study's work directory; give another --workdir"
        )
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    write_atomic(path, _pretty(run_now))
    return Journal(folder, run_now, read_steps(folder, run_now, repair=True))


def read_journal(folder: Path) -> Journal:
    """Open a study's folder for reading only.

    Raises:
      ValueError: where it is not one, or was written by a newer version.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not a study's work directory: it has no run.json")
    run = upgrade_run(_read_run(folder))
    return Journal(folder, run, read_steps(folder, run, repair=False))


def read_steps(folder: Path, run: Mapping[str, Any], repair: bool) -> list[Step]:
    """Read the whole steps of a journal; a last line that was cut short is left out.

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
    steps: list[Step] = []
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
        assert record.arrays is not None
        arrays = folder / record.arrays
        if not arrays.is_file():
            raise ValueError(
                f"{path}, line {number} names {record.arrays}, which is gone; restore it from a "
                "copy"
            )
        steps.append(Step(record, arrays))
        at += len(line)
    return steps


def _parse(path: Path, number: int, line: bytes, run: Mapping[str, Any]) -> StepRecord | None:
    """Parse a line as a record; None where it is not whole."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(values, dict) or "arrays" not in values:
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


def _has_no_run_yet(folder: Path) -> bool:
    """Whether a folder is empty, or a study was interrupted in it before it had its run.json."""
    return all(
        path.name == "run.json.part" or (path.name == "steps" and not any(path.iterdir()))
        for path in folder.iterdir()
    )


def _line(record: StepRecord) -> bytes:
    return (json.dumps(to_json(record.to_dict()), ensure_ascii=False) + "\n").encode()


def _pretty(run: Mapping[str, Any]) -> bytes:
    return (json.dumps(run, indent=2, ensure_ascii=False) + "\n").encode()


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
