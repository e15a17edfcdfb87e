"""The end of a journal's file: what was last written there, and the next line."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxedit.files import with_file_name
from jaxedit.study.chain import chain_line, digest_of_line

FILE = "journal.jsonl"


@dataclasses.dataclass
class JournalEnd:
    """The end of a journal's file, as this process last read or wrote it.

    Attributes:
      path: of the file.
      n_bytes: how long it is.
      last_line: its last line.
      link: what the next line names as the line before.
    """

    path: Path
    n_bytes: int
    last_line: bytes
    link: str

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

    def append(self, values: Mapping[str, Any], arrays_digest: str | None = None) -> None:
        """Write a line to the end of the file and to the disk, or leave the file as it was.

        Args:
          values: of the line, as JSON can hold them.
          arrays_digest: of the step's file; None: it has none.

        Raises:
          ValueError: where another process has written to the file.
          OSError: where the disk is full or not writable.
        """
        self.check()
        content = chain_line(values, self.link, arrays_digest)
        try:
            with self.path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists() and self.path.stat().st_size > self.n_bytes:
                os.truncate(self.path, self.n_bytes)
            raise with_file_name(error, self.path) from error
        self.n_bytes += len(content)
        self.last_line = content
        self.link = digest_of_line(content)
