"""The lines of a journal: read, checked, and cut behind one of them."""

import contextlib
import json
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.study.chain import (
    Links,
    digest_file,
    first_link,
    is_chained,
    take_links,
)
from jaxedit.study.journal_end import FILE, JournalEnd, count_lost, read_mark
from jaxedit.study.record import StepRecord
from jaxedit.study.upgrade import upgrade_line


class Line(NamedTuple):
    """A whole line of a journal.

    Attributes:
      record: what it says.
      links: what ties it to others; None: an older version wrote it.
      end: where it ends in the file, in bytes.
      text: as it stands there.
    """

    record: StepRecord
    links: Links | None
    end: int
    text: bytes


def read_lines(folder: Path, run: Mapping[str, Any], raw: Mapping[str, Any]) -> list[Line]:
    """Read and check the whole lines of a journal.

    A last line that was cut short is left out, and said to be, as are lines that were lost there.

    Args:
      folder: the work directory.
      run: the upgraded content of run.json.
      raw: the content of run.json as it is there.

    Raises:
      ValueError: where a line was changed, lost, doubled, exchanged or is of another study. Of
        the last ones, where they cannot be made again.
    """
    path, mark = folder / FILE, read_mark(folder)
    content = path.read_bytes() if path.exists() else b""
    may_lack = "digest" not in raw or "upgraded_from" in raw  # an older version began it
    lines: list[Line] = []
    at, last_step, links = 0, -1, None
    for number, line in enumerate(_split(content), 1):
        values = _parse(path, number, line, at, at + len(line) == len(content))
        if values is None:
            break

        # Where the line stands: behind the line that it names.
        own = take_links(values)
        if own is None and not (links is None and may_lack):
            raise ValueError(f"{_place(path, number)} has lost its digests; {_cure(path, at)}")
        if own is not None:
            previous = links.digest if links else first_link(raw, content[:at])
            if own.previous != previous:
                raise ValueError(_misplaced(path, number, at))

        # What it says.
        record = _to_record(path, number, values, run)
        _check_order(_place(path, number), record, last_step, run, is_chained=own is not None)
        last_step, links = record.step, own
        at += len(line)
        lines.append(Line(record, own, at, line))
    if not lines:
        _check_begun(folder)
    try:
        n_lost = count_lost(mark, len(lines), undone_by(lines))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    if n_lost:
        logging.getLogger("jaxedit").warning(
            "%s has lost its last lines, %d of %d; a study that goes on makes these steps again",
            path,
            n_lost,
            len(lines) + n_lost,
        )
    return lines


def undone_by(lines: list[Line]) -> tuple[int, ...]:
    """Return the edits that lines of a journal undid."""
    return tuple(number for line in lines for number in line.record.undone or ())


def check_arrays(folder: Path, lines: list[Line], every: bool) -> list[Line]:
    """Check that the files of a journal's steps are those that were written.

    Args:
      folder: the work directory.
      lines: of the journal.
      every: whether every file is read, or only looked for, but for the last one.

    Returns:
      The lines, without the last one where its file is missing or damaged: it is made again.

    Raises:
      ValueError: where another step's file is missing or damaged.
    """
    for number, line in enumerate(lines, 1):
        is_last = number == len(lines)
        problem = None
        if line.record.arrays is not None:
            path = folder / line.record.arrays
            problem = _problem_of(path, line.links, read=every or is_last)
        if problem is None:
            continue
        where = f"{_place(folder / FILE, number)} names {line.record.arrays}, which {problem}"
        begin = lines[number - 2].end if number > 1 else 0
        if not is_last:
            raise ValueError(f"{where}; {_cure(folder / FILE, begin)}")
        logging.getLogger("jaxedit").warning("%s; a study that goes on makes it again", where)
        return lines[:-1]
    return lines


def end_behind(folder: Path, lines: list[Line], raw: Mapping[str, Any]) -> JournalEnd:
    """Return the end of a journal that has these lines.

    Args:
      folder: the work directory.
      lines: the first ones of the file.
      raw: the content of run.json as it is there.
    """
    if not lines:
        return JournalEnd(folder / FILE, 0, b"", first_link(raw), 0, ())
    last = lines[-1]
    links = last.links
    link = links.digest if links else first_link(raw, b"".join(line.text for line in lines))
    return JournalEnd(folder / FILE, last.end, last.text, link, len(lines), undone_by(lines))


def cut_lines(folder: Path, lines: list[Line], raw: Mapping[str, Any]) -> JournalEnd:
    """Cut a journal's file behind the last of these lines, and return its end.

    Args:
      folder: the work directory.
      lines: those that stay, the first ones of the file.
      raw: the content of run.json as it is there.
    """
    end = end_behind(folder, lines, raw)
    end.mark()  # first: a crash in between leaves more lines than it says
    if end.path.exists() and end.path.stat().st_size > end.n_bytes:
        os.truncate(end.path, end.n_bytes)
        with end.path.open("rb") as file:  # on the disk before the steps are written anew
            os.fsync(file.fileno())
    return end


def _split(content: bytes) -> list[bytes]:
    """Split at line feeds alone, which stay; a carriage return may be the trace of a damage."""
    *whole, rest = content.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _parse(path: Path, number: int, line: bytes, at: int, is_last: bool) -> dict[str, Any] | None:
    """Parse a line; None where it is the last one and was cut short.

    Raises:
      ValueError: where it is damaged.
    """
    values: Any = None
    if line.endswith(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
    is_step = isinstance(values, dict) and bool({"arrays", "undone"} & set(values))
    if is_step and ("digest" not in values or is_chained(line)):
        return values
    if is_last and not is_step and not _had_its_end(line):
        return None
    what = "was changed since it was written"
    if not (is_step or is_last):
        what = "is damaged, and more lines follow"
    raise ValueError(f"{_place(path, number)} {what}; {_cure(path, at)}")


def _had_its_end(line: bytes) -> bool:
    """Tell whether a line was once on the disk to its end, which a crash does not leave."""
    if line.endswith(b"\n"):
        return b'"previous"' in line or b'"digest"' in line
    return is_chained(line[:-1] + b"\n")  # the line feed is another byte


def _to_record(
    path: Path, number: int, values: Mapping[str, Any], run: Mapping[str, Any]
) -> StepRecord:
    try:
        return StepRecord.from_dict(upgrade_line(values, run))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{_place(path, number)} is no step of a study: {error}") from error


def _check_order(
    place: str, record: StepRecord, last: int, run: Mapping[str, Any], is_chained: bool
) -> None:
    """Check that a line's step follows the last one, and that it names its own file."""
    if record.kind == "undo":
        if record.step != last:
            raise ValueError(f"{place} undoes after edit {record.step}, where edit {last} is last")
        return
    if last < 0 and record.step != 0:
        raise ValueError(
            f"{place} is step {record.step}: the line of the unedited model is gone; restore it "
            "from a copy"
        )
    # In a shard there are gaps; elsewhere the chain would not notice that there always was one.
    may_skip = is_chained or run.get("config", {}).get("shard")
    if record.step <= last or (record.step > last + 1 and not may_skip):
        raise ValueError(
            f"{place} is step {record.step}, expected {last + 1}: lines were lost, doubled or "
            "exchanged; restore it from a copy"
        )
    expected = f"steps/{record.step:06d}.safetensors"
    if record.arrays != expected:
        raise ValueError(
            f"{place} names {record.arrays} as the arrays of step {record.step}, expected "
            f"{expected}; restore it from a copy"
        )


def _check_begun(folder: Path) -> None:
    """Check that a journal without lines is one that has just begun."""
    written = sorted(path.name for path in (folder / "steps").glob("*.safetensors"))
    if len(written) > 1:
        raise ValueError(
            f"{folder / FILE} is gone or empty, and {folder / 'steps'} holds {len(written)} steps; "
            "restore it from a copy, or give another folder"
        )


def _problem_of(path: Path, links: Links | None, read: bool) -> str | None:
    """Say what is wrong with a step's file; None: nothing that was looked for."""
    if not path.is_file():
        return "is gone"
    expected = links.arrays_digest if links else None
    if read and expected is not None and digest_file(path) != expected:
        return "is not the file that was written: it was changed, or is another step's"
    return None


def _place(path: Path, number: int) -> str:
    return f"{path}, line {number}"


def _misplaced(path: Path, number: int, at: int) -> str:
    if number == 1:
        return (
            f"{path} does not belong to the run.json beside it: one of them is another study's; "
            "restore both from a copy"
        )
    return (
        f"{_place(path, number)} does not follow the line before it: lines were lost, doubled or "
        f"exchanged, or are another study's; {_cure(path, at)}"
    )


def _cure(path: Path, at: int) -> str:
    if at == 0:
        return "restore it from a copy, or give another folder"
    return f"restore it from a copy, or {_how_to_cut(path, at)}"


def _how_to_cut(path: Path, at: int) -> str:
    command = f"truncate -s {at} {shlex.quote(str(path))}"
    return (
        f"cut the journal there by `{command}`: a study that goes on makes the steps from there on "
        "again"
    )
