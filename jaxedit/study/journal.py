"""The journal of a study: append-only, and what its model and editor's state are rebuilt from.

    WORKDIR/run.json                  what the study is: schema, configuration, model, facts, texts
    WORKDIR/journal.jsonl             one line a step or undo (`jaxedit.study.record.StepRecord`)
    WORKDIR/steps/000001.safetensors  the step's arrays: the edit's factors, what the editor's
                                      state learnt

A step's arrays are on disk before its line is, and a line is whole or not there: whatever
interrupts a study, the next run goes on after the last whole step. What was changed, lost, doubled
or exchanged since is noticed by digests (`jaxedit.study.chain`) and named. Numbers that are not
finite are written as the strings "inf" and "nan". A journal of an older schema is upgraded
(`jaxedit.study.upgrade`): in memory where it is only read, on the disk where a study goes on; from
there on it has digests.
"""

import dataclasses
import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxedit.edits.edit import Edit, read_edit
from jaxedit.files import LOCK_FILES, to_json, to_safetensors, write_atomic
from jaxedit.study import run_file
from jaxedit.study.chain import digest_bytes, digest_file
from jaxedit.study.journal_end import FILE, JournalEnd
from jaxedit.study.journal_lines import Line, check_arrays, cut_lines, end_behind, read_lines
from jaxedit.study.record import SCHEMA, StepRecord, mark_undone


class Step(NamedTuple):
    """One line of the journal and where its arrays are.

    Attributes:
      record: what the line says.
      arrays: the file.
      digest: of the file; None: not known.
    """

    record: StepRecord
    arrays: Path
    digest: str | None = None

    def check_arrays(self) -> None:
        """Check that the step's file is the one that was written.

        Raises:
          ValueError: where it is gone, was changed or is another step's.
        """
        try:
            found = digest_file(self.arrays)
        except OSError as error:
            raise ValueError(
                f"{self.arrays} cannot be read ({error.strerror}); restore it from a copy"
            ) from error
        if self.digest is not None and found != self.digest:
            raise ValueError(
                f"{self.arrays} is not the file that step {self.record.step} wrote: it was "
                "changed, or is another step's; restore it from a copy"
            )

    def read_edit(self) -> Edit:
        """Read the step's edit.

        Raises:
          ValueError: where the file is not the one that was written, or holds no edit.
        """
        self.check_arrays()
        return read_edit(self.arrays)


@dataclasses.dataclass(frozen=True)
class Journal:
    """A study's folder.

    `steps` are the whole steps that it held when opened, the baseline first, as they stand after
    all undos (`mark_undone`); `lines` tell of them, and `end` is where the next one goes.
    """

    folder: Path
    run: dict[str, Any]
    steps: list[Step]
    lines: list[Line]
    end: JournalEnd

    @property
    def kept_steps(self) -> list[Step]:
        """The steps whose edits the study's model has."""
        return [step for step in self.steps if step.record.kept]

    @property
    def kept_numbers(self) -> list[int]:
        """The numbers of these steps."""
        return [step.record.step for step in self.kept_steps]

    @property
    def last_snapshot(self) -> int:
        """The number of the last step with all changes since the unedited model; 0: none has."""
        return max((step.record.step for step in self.steps if step.record.snapshot), default=0)

    @property
    def n_unverified(self) -> int:
        """How many lines were written by an older version, without digests."""
        return sum(line.links is None for line in self.lines)

    def append(
        self,
        record: StepRecord,
        arrays: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
    ) -> None:
        """Write one step, first its arrays, then its line; both reach the disk before it returns.

        Raises:
          ValueError: where another process has written to the journal; nothing is written over.
          OSError: where the disk is full or not writable; the journal then ends with the step
            before.
        """
        path = self.folder / "steps" / f"{record.step:06d}.safetensors"
        named = dataclasses.replace(record, arrays=f"steps/{path.name}")
        content = to_safetensors(arrays, metadata)
        self.end.check()
        try:
            write_atomic(path, content)
            self.end.append(to_json(named.to_dict()), digest_bytes(content))
        except OSError as error:
            raise OSError(
                error.errno,
                f"step {record.step} could not be written to {self.folder} ({error.strerror}); "
                "the steps before it are whole: make room and run the same command again to go on",
            ) from error

    def append_undo(self, steps: Sequence[int], reason: str | None = None) -> None:
        """Write that the model lacks the edits of these steps from here on; nothing is erased.

        Args:
          steps: of the edits.
          reason: the guard's, where it undoes them; None: a person does.

        Raises:
          ValueError: where another process has written to the journal.
          OSError: where the line cannot be written; there is no undo then.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        last = self.steps[-1].record.step
        record = StepRecord(
            kind="undo",
            step=last,
            undone=list(steps),
            written_at=now,
            guard_reason=reason,
        )
        self.end.append(to_json(record.to_dict()), undone=steps)

    def truncate(self, n_steps: int) -> "Journal":
        """Keep the first `n_steps` steps, on the disk as well; the others are to be done again.

        Each line is a step in the journals that are cut: those of single edits, and of whole
        matrices every k edits. Nothing can be undone there.
        """
        if len(self.steps) <= n_steps:
            return self
        lines = self.lines[:n_steps]
        end = cut_lines(self.folder, lines, run_file.read_run_file(self.folder))
        return dataclasses.replace(self, steps=self.steps[:n_steps], lines=lines, end=end)


def open_journal(
    folder: Path,
    run: Mapping[str, Any],
    may_differ: tuple[str, ...] = (),
    most_steps: int | None = None,
) -> Journal:
    """Open a study's folder to go on with it, or make it.

    Args:
      folder: the work directory.
      run: what the study is, as nested dictionaries of plain values; the schema is added.
      may_differ: dotted keys of `run` that a later run may change.
      most_steps: how many edits there are in all; None: as many as there will be.

    Raises:
      ValueError: where the folder belongs to another study (the message names the keys that
        differ), holds more edits than asked for, or its journal is damaged other than at its end.
      OSError: where it cannot be written.
    """
    run_now: dict[str, Any] = {"schema": SCHEMA} | to_json(dict(run))
    if not (folder / run_file.FILE).exists():
        check_workdir(folder)
        (folder / "steps").mkdir(parents=True, exist_ok=True)
        raw = run_file.write_run_file(folder, run_now)
        return _journal_of(folder, run_now, raw, read_lines(folder, run_now, raw))

    raw = run_file.read_run_file(folder)
    new = run_file.take_over(folder, raw, run_now, may_differ)
    lines = read_lines(folder, run_file.without_digest(raw), raw)
    lines = check_arrays(folder, lines, every=True)
    n_steps = len(_steps_of(folder, lines)) - 1  # before anything is written
    if most_steps is not None and n_steps > most_steps:
        asked = f"where {most_steps} are asked for: give another --workdir"
        raise ValueError(f"{folder} holds {n_steps} edits, {asked}")
    if raw.get("schema") != SCHEMA:  # first the journal: its upgraded lines are known
        content = b"".join(_older_line(line.record) for line in lines)
        write_atomic(folder / FILE, content)
        raw = run_file.write_run_file(folder, new)
        lines = read_lines(folder, run_now, raw)
    elif new != {key: value for key, value in raw.items() if key != "digest"}:
        raw = run_file.write_run_file(folder, new)
    return _journal_of(folder, run_now, raw, lines)


def read_journal(folder: Path) -> Journal:
    """Open a study's folder for reading only.

    A step's file is compared with its digest where it is read (`Step.check_arrays`).

    Raises:
      ValueError: where it is not one, was written by a newer version, or is damaged.
    """
    if not (folder / run_file.FILE).is_file():
        raise ValueError(f"{folder} is not a study's work directory: it has no run.json")
    raw = run_file.read_run_file(folder)
    run = run_file.without_digest(raw)
    lines = check_arrays(folder, read_lines(folder, run, raw), every=False)
    steps = _steps_of(folder, lines)
    end = end_behind(folder, lines, raw)
    return Journal(folder, run, steps, lines, end)


def check_workdir(folder: Path) -> None:
    """Check that a folder is a study's, or that one may be begun there.

    Raises:
      ValueError: where it holds other things.
    """
    if not folder.exists() or (folder / run_file.FILE).exists():
        return
    for path in folder.iterdir():
        empty = path.name == "steps" and not any(path.iterdir())
        if not empty and path.name not in {f"{run_file.FILE}.part", *LOCK_FILES}:
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


def _journal_of(
    folder: Path, run: dict[str, Any], raw: Mapping[str, Any], lines: list[Line]
) -> Journal:
    """Return a journal that is to be written to; what was cut short at its end is cut off."""
    steps = _steps_of(folder, lines)
    journal = Journal(folder, run, steps, lines, cut_lines(folder, lines, raw))
    if journal.n_unverified:
        logging.getLogger("jaxedit").warning(
            "%s: the first %d lines of its journal were written by an older version, without "
            "digests: damage to them cannot be noticed",
            folder,
            journal.n_unverified,
        )
    return journal


def _steps_of(folder: Path, lines: list[Line]) -> list[Step]:
    """Return the steps that the lines of a journal tell of, as they stand after all undos.

    Raises:
      ValueError: where an undo names an edit that is not kept there.
    """
    try:
        records = mark_undone(line.record for line in lines)
    except ValueError as error:
        raise ValueError(f"{folder / FILE}: {error}; restore it from a copy") from error
    digests = {
        line.record.step: line.links.arrays_digest
        for line in lines
        if line.links and line.record.kind != "undo"
    }
    return [
        Step(record, folder / str(record.arrays), digests.get(record.step)) for record in records
    ]


def _older_line(record: StepRecord) -> bytes:
    return (json.dumps(to_json(record.to_dict()), ensure_ascii=False) + "\n").encode()
