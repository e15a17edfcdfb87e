"""The journal of a study: an append-only record from which its model and its editor's state are
rebuilt.

    WORKDIR/run.json                what the study is: its configuration, model, facts and texts
    WORKDIR/journal.jsonl           one line a step: what was asked, what was measured, what was decided
    WORKDIR/steps/000001.safetensors  the step's arrays: the edit's factors and what the editor's state learnt

A step's arrays are on disk before its line is, and a line is whole or not there: whatever
interrupts a study, the next run goes on after the last whole step. Numbers that are not finite are
written as the strings "inf" and "nan"."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.edits.serialise import to_safetensors
from jaxedit.files import flatten_keys, partial_path, to_json, write_atomic


class Step(NamedTuple):
    """One line of the journal and where its arrays are (None: the step has none)."""

    record: dict[str, Any]
    arrays: Path | None


@dataclasses.dataclass(frozen=True)
class Journal:
    """A study's folder. `steps` are the whole steps it held when it was opened."""

    folder: Path
    run: dict[str, Any]
    steps: list[Step]

    def append(
        self,
        record: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
    ) -> None:
        """Writes one step: first its arrays, then its line; both reach the disk before this
        returns.

        Raises:
          OSError: where the disk is full or not writable; the journal then ends with the step
            before.
        """
        number = record["step"]
        path = self.folder / "steps" / f"{number:06d}.safetensors"
        lines = self.folder / "journal.jsonl"
        line = (
            json.dumps(to_json({**record, "arrays": f"steps/{path.name}"}), ensure_ascii=False)
            + "\n"
        )
        whole = lines.stat().st_size if lines.exists() else 0
        try:
            write_atomic(path, to_safetensors(arrays, metadata))
            with lines.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            partial_path(path).unlink(missing_ok=True)
            if lines.exists() and lines.stat().st_size > whole:
                os.truncate(lines, whole)
            raise OSError(
                error.errno,
                f"step {number} could not be written to {self.folder} ({error.strerror}); the steps before it are whole: "
                "make room and run the same command again to go on",
            ) from error

    def cut(self, n_steps: int) -> "Journal":
        """The journal with its first `n_steps` steps only, on the disk as well; the others are to
        be done again.
        """
        lines = self.folder / "journal.jsonl"
        if len(self.steps) > n_steps:
            whole = lines.read_bytes().splitlines(keepends=True)[:n_steps]
            os.truncate(lines, sum(map(len, whole)))
        return dataclasses.replace(self, steps=self.steps[:n_steps])


def open_journal(folder: Path, run: Mapping[str, Any], may_differ: tuple[str, ...] = ()) -> Journal:
    """Opens a study's folder, or makes it.

    Args:
      folder: the work directory.
      run: what the study is, as nested dictionaries of plain values.
      may_differ: dotted keys of `run` that a later run may change.

    Raises:
      ValueError: where the folder belongs to another study (the message names the keys that
        differ), or its journal is damaged other than at its end.
      OSError: where it cannot be written.
    """
    run_now: dict[str, Any] = to_json(dict(run))
    path = folder / "run.json"
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} is not JSON ({error}): is {folder} a study's work directory?"
            ) from error
        a, b = flatten_keys(old if isinstance(old, dict) else {}), flatten_keys(run_now)
        differing = sorted(
            key
            for key in {*a, *b}
            if a.get(key) != b.get(key) and not key.startswith(may_differ or ("\0",))
        )
        if differing:
            shown = "; ".join(
                f"{key}: {_short(a.get(key))} there, {_short(b.get(key))} now"
                for key in differing[:6]
            )
            raise ValueError(
                f"{folder} belongs to another study. {shown}. Give another --workdir, or the same configuration"
            )
        if old != run_now:
            write_atomic(path, _pretty(run_now))
    elif folder.exists() and not _is_barely_begun(folder):
        raise ValueError(
            f"{folder} is not empty and is not a study's work directory; give another --workdir"
        )
    else:
        (folder / "steps").mkdir(parents=True, exist_ok=True)
        write_atomic(path, _pretty(run_now))
    return Journal(folder, run_now, read_steps(folder, repair=True))


def read_journal(folder: Path) -> Journal:
    """Opens a study's folder for reading only.

    Raises:
      ValueError: where it is not one.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a study's work directory: it has no run.json")
    return Journal(
        folder, json.loads(path.read_text(encoding="utf-8")), read_steps(folder, repair=False)
    )


def read_steps(folder: Path, repair: bool) -> list[Step]:
    """The whole steps of a journal; a last line that was cut short is left out, and with `repair`
    cut off.

    Raises:
      ValueError: where a line before the last is damaged, or a step's arrays are gone.
    """
    path = folder / "journal.jsonl"
    if not path.exists():
        return []
    steps: list[Step] = []
    content = path.read_bytes()
    at = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict) or "arrays" not in record:
            if at + len(line) < len(content):
                raise ValueError(
                    f"{path}, line {number} is damaged, and more lines follow; restore it from a copy"
                )
            if repair:
                os.truncate(path, at)
            break
        arrays = folder / record["arrays"]
        if not arrays.is_file():
            raise ValueError(
                f"{path}, line {number} names {record['arrays']}, which is gone; restore it from a copy"
            )
        steps.append(Step(record, arrays))
        at += len(line)
    return steps


def _is_barely_begun(folder: Path) -> bool:
    """Whether a folder is empty, or a study was interrupted in it (a full disk, say) before it had
    its run.json.
    """
    return all(
        path.name == "run.json.part" or (path.name == "steps" and not any(path.iterdir()))
        for path in folder.iterdir()
    )


def _pretty(run: Mapping[str, Any]) -> bytes:
    return (json.dumps(run, indent=2, ensure_ascii=False) + "\n").encode()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
