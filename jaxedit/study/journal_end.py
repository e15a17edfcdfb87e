"""The end of a journal's file: what was last written there, and the next line.

    journal_end.json   how many lines the journal has, and which edits these undid

A line is written before this file is: a crash between the two leaves one line more than it says,
and a journal with fewer has lost its last ones. Older versions wrote no such file.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.files import read_json, with_file_name, write_atomic
from jaxedit.study.chain import chain_line, digest_of_line, is_sealed, seal

FILE = "journal.jsonl"
MARK = "journal_end.json"


class EndMark(NamedTuple):
    """What was last written of a journal's end.

    Attributes:
      n_lines: how many lines there were.
      undone: the edits that they undid.
    """

    n_lines: int
    undone: tuple[int, ...]


@dataclasses.dataclass
class JournalEnd:
    """The end of a journal's file, as this process last read or wrote it.

    Attributes:
      path: of the file.
      n_bytes: how long it is.
      last_line: its last line.
      link: what the next line names as the line before.
      n_lines: how many lines it has.
      undone: the edits that its lines undid.
    """

    path: Path
    n_bytes: int
    last_line: bytes
    link: str
    n_lines: int
    undone: tuple[int, ...]

    def check(self) -> None:
        """Check that the file still ends as this process left it.

        Raises:
          ValueError: where another process has written to it; nothing is written then.
        """
        found = self.path.stat().st_size if self.path.exists() else 0
        tail = b""
        if found == self.n_bytes and found:
            with open(self.path, "rb") as file:
                file.seek(found - len(self.last_line))
                tail = file.read()
        if found != self.n_bytes or tail != self.last_line:
            raise ValueError(
                f"{self.path} is not as this process last wrote it ({found:,} bytes, expected "
                f"{self.n_bytes:,}): another process writes to this folder. Nothing was written "
                "over; stop one of the two, and run the same command again to go on"
            )

    def append(
        self,
        values: Mapping[str, Any],
        arrays_digest: str | None = None,
        undone: Sequence[int] = (),
    ) -> None:
        """Write a line to the end of the file and to the disk, or leave the file as it was.

        Args:
          values: of the line, as JSON can hold them.
          arrays_digest: of the step's file; None: it has none.
          undone: the edits that the line undoes.

        Raises:
          ValueError: where another process has written to the file.
          OSError: where the disk is full or not writable.
        """
        self.check()
        content = chain_line(values, self.link, arrays_digest)
        longer = dataclasses.replace(
            self,
            n_bytes=self.n_bytes + len(content),
            last_line=content,
            link=digest_of_line(content),
            n_lines=self.n_lines + 1,
            undone=(*self.undone, *undone),
        )
        try:
            with self.path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            longer.mark()
        except OSError as error:
            if self.path.exists() and self.path.stat().st_size > self.n_bytes:
                os.truncate(self.path, self.n_bytes)
            raise with_file_name(error, self.path) from error
        vars(self).update(vars(longer))

    def mark(self) -> None:
        """Write where the file ends, unless that is written already.

        Raises:
          OSError: where it cannot be written; what was written before then stays.
        """
        mark = EndMark(self.n_lines, self.undone)
        if read_mark(self.path.parent) != mark:
            content = json.dumps(seal(mark._asdict()))
            write_atomic(self.path.with_name(MARK), content)


def read_mark(folder: Path) -> EndMark | None:
    """Read where a journal ended when it was last written; to be done before it is read itself.

    Returns:
      None where that is not known: an older version wrote the journal, or the file was damaged.
    """
    try:
        values = read_json(folder / MARK)
    except (ValueError, OSError):
        return None
    return EndMark(values["n_lines"], tuple(values["undone"])) if is_sealed(values) else None


def count_lost(mark: EndMark | None, n_lines: int, undone: Sequence[int]) -> int:
    """Count the lines that a journal has lost at its end, of edits which can be made again.

    Args:
      mark: where it ended; None: that is not known.
      n_lines: how many it has.
      undone: the edits that these undid.

    Raises:
      ValueError: where one of those that were lost undid edits: the model would have them again.
    """
    if mark is None:
        return 0
    back = sorted(set(mark.undone) - set(undone))
    if back:
        raise ValueError(
            f"has lost its end ({n_lines} lines of {mark.n_lines}), which said that the edits "
            f"{back} were undone; restore it from a copy, or remove {MARK} beside it and undo "
            "them again with jaxedit undo"
        )
    return max(mark.n_lines - n_lines, 0)
