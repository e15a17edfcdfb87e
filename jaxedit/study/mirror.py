"""A work directory in a bucket: the study writes to a copy on this machine, which is mirrored.

What is there is always a study that can go on: a step's arrays are there before its line of the
journal is, and that before the mark of the journal's end. The copy lies in the user's cache folder,
so a study that goes on where it was interrupted reads nothing twice; elsewhere it goes on from what
the bucket holds.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path, PurePosixPath

from jaxedit.distributed import is_first_process
from jaxedit.files import LOCK_FILES, cache_folder, write_atomic
from jaxedit.remote import Place, is_remote, open_place
from jaxedit.study import journal_end

INTERVAL_S = 30.0  # between two looks for new steps
LAST = (journal_end.FILE, journal_end.MARK)  # what is written behind all others, in this order


@contextlib.contextmanager
def local_workdir(place: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a work directory on this machine; that of an address in a bucket is mirrored there.

    Args:
      place: a path, or an address (gs://, s3://); of several processes the first one mirrors it.

    Raises:
      ValueError: where it cannot be read or written, or another process has written to it.
    """
    place = os.fspath(place)
    if not is_remote(place):
        yield Path(place)
        return
    folder = _folder_of(place)
    if not is_first_process():
        yield folder
        return
    mirror = Mirror(open_place(place), folder)
    mirror.pull()
    stop = threading.Event()
    thread = threading.Thread(target=mirror.push_until, args=(stop,), daemon=True)
    thread.start()
    try:
        yield folder
    finally:
        stop.set()
        thread.join()
        mirror.push()


def fetch_workdir(place: str | os.PathLike[str]) -> Path:
    """Return a study's work directory on this machine, for reading; fetch that of an address.

    Raises:
      ValueError: where it cannot be read.
    """
    place = os.fspath(place)
    if not is_remote(place):
        return Path(place)
    mirror = Mirror(open_place(place), _folder_of(place))
    mirror.pull()
    return mirror.folder


class Mirror:
    """A folder here and its like in a bucket.

    Attributes:
      place: in the bucket.
      folder: here.
    """

    def __init__(self, place: Place, folder: Path):
        self.place, self.folder = place, folder
        self._pushed: dict[str, tuple[int, int]] = {}  # name -> time and size of what is there
        self._journal_bytes: dict[str, int] = {}  # a journal's name -> how long it is there

    def pull(self) -> None:
        """Fetch what the bucket has and this machine has not.

        Raises:
          ValueError: where a journal here and the one there went different ways.
        """
        self.place.files.invalidate_cache()
        listed = self.place.list_files()
        journals = [name for name in listed if PurePosixPath(name).name == journal_end.FILE]
        fresher = {str(PurePosixPath(name).parent) for name in journals if self._is_behind(name)}
        for name in sorted(listed, key=_order):
            path, study = self.folder / name, _study_of(name, journals)
            if path.is_file() and study not in fresher:
                continue
            write_atomic(path, (self.place / name).read())
            self._pushed[name] = _stamp(path)
        for name in journals:
            self._journal_bytes[name] = int(listed[name]["size"])

    def _is_behind(self, name: str) -> bool:
        """Tell whether a journal here lacks lines that the bucket has."""
        path = self.folder / name
        here = path.read_bytes() if path.is_file() else b""
        there = (self.place / name).read()
        if here.startswith(there):
            return False
        if there.startswith(here):
            return True
        raise ValueError(
            f"the study at {self.place.address}/{name} and its copy here, {path}, have gone "
            "different ways: delete the copy to go on with the one, or give another --workdir"
        )

    def push_until(self, stop: threading.Event) -> None:
        """Push every so often; what fails is tried again, and said."""
        while not stop.wait(INTERVAL_S):
            try:
                self.push()
            except (ValueError, OSError) as error:
                logging.getLogger("jaxedit").warning("not mirrored: %s", error)

    def push(self) -> None:
        """Write to the bucket what is new here.

        Raises:
          ValueError: where it cannot be written, or another process has written there.
        """
        # Marks, then journals, then all else: what these speak of is on the disk before they are.
        ends = self._read_ends()
        names = {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name not in LAST
        }
        for name in sorted(name for name in names if not name.endswith((".part", *LOCK_FILES))):
            stamp = _stamp(self.folder / name)
            if self._pushed.get(name) != stamp:
                (self.place / name).put((self.folder / name).read_bytes())
                self._pushed[name] = stamp
        for name, (stamp, content) in sorted(ends.items(), key=lambda end: _order(end[0])):
            if self._pushed.get(name) == stamp:
                continue
            if PurePosixPath(name).name == journal_end.FILE:
                self._check_journal(name)
                self._journal_bytes[name] = len(content)
            (self.place / name).put(content)
            self._pushed[name] = stamp

    def _read_ends(self) -> dict[str, tuple[tuple[int, int], bytes]]:
        """Read the marks of journals' ends, then their whole lines: name -> time and size, content.

        A journal may have more lines than its mark says.
        """
        ends = {}
        for file in reversed(LAST):
            for path in self.folder.rglob(file):
                content = path.read_bytes()
                if file == journal_end.FILE:
                    content = content[: content.rfind(b"\n") + 1]
                name = path.relative_to(self.folder).as_posix()
                ends[name] = ((path.stat().st_mtime_ns, len(content)), content)
        return ends

    def _check_journal(self, name: str) -> None:
        """Check that a journal in the bucket is as this process left it."""
        there, files = self.place / name, self.place.files
        files.invalidate_cache()
        is_there = there.call(lambda: files.exists(there.path))
        found = int(there.call(lambda: files.size(there.path))) if is_there else 0
        expected = self._journal_bytes.get(name, 0)
        if found != expected:
            raise ValueError(
                f"{there.address} has {found:,} bytes, where this process left {expected:,}: "
                "another process writes to this work directory; stop one of the two"
            )


def _folder_of(address: str) -> Path:
    """Return where the copy of a work directory lies."""
    address = address.rstrip("/")
    digest = sha256(address.encode()).hexdigest()[:16]
    return cache_folder() / "workdirs" / digest / PurePosixPath(address).name


def _order(name: str) -> int:
    """Order names by when they are written: journals behind all else, then the marks."""
    file = PurePosixPath(name).name
    return LAST.index(file) + 1 if file in LAST else 0


def _study_of(name: str, journals: list[str]) -> str | None:
    """Return the folder of the study that a file belongs to; None: to none."""
    folders = {str(PurePosixPath(journal).parent) for journal in journals}
    return next((str(each) for each in PurePosixPath(name).parents if str(each) in folders), None)


def _stamp(path: Path) -> tuple[int, int]:
    """Return a file's time and size."""
    about = path.stat()
    return about.st_mtime_ns, about.st_size
