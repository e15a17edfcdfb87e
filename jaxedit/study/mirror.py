"""A work directory in a bucket: the study writes to a copy on this machine, which is mirrored.

What is there is always a study that can go on: a step's arrays are there before its line of the
journal is, and that before the mark of the journal's end. The copy lies in the user's cache folder,
so a study that goes on where it was interrupted reads nothing twice; elsewhere it goes on from what
the bucket holds.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxedit.distributed import is_first_process, own_target
from jaxedit.files import (
    LOCK_FILES,
    cache_folder,
    exclusive_target,
    expand_home,
    read_json,
    write_atomic,
)
from jaxedit.remote import Place, digest_of, is_remote, open_place
from jaxedit.study import journal_end

INTERVAL_S = 30.0  # between two looks for new steps
LAST = (journal_end.FILE, journal_end.MARK)  # what is written behind all others, in this order


@contextlib.contextmanager
def local_workdir(place: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a work directory on this machine; that of an address in a bucket is mirrored there.

    Args:
      place: a path, or an address (gs://, s3://); of several processes the first one mirrors it.

    Raises:
      ValueError: where it cannot be read or written, another process of this machine mirrors it, or
        one of another machine has written to it.
    """
    place = expand_home(place)
    if not is_remote(place):
        yield Path(place)
        return
    folder = _folder_of(place)
    with own_target(folder):
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
      ValueError: where nothing is there, or it cannot be read.
    """
    place = expand_home(place)
    if not is_remote(place):
        return Path(place)
    mirror = Mirror(open_place(place), _folder_of(place))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive_target(mirror.folder))
        except ValueError:  # a study writes to the copy, which has all that the bucket has
            return mirror.folder
        if not mirror.pull() and not mirror.folder.is_dir():
            raise ValueError(f"there is nothing at {place}")
    return mirror.folder


class FileState(NamedTuple):
    """A file as it was when it was the same here and there.

    Attributes:
      here: its time and size on this machine.
      there: a digest of what the bucket knew of it.
    """

    here: tuple[int, int]
    there: str


class Mirror:
    """A folder here and its like in a bucket.

    Attributes:
      place: in the bucket.
      folder: here. What was the same here and there is kept beside it, for the next process.
    """

    def __init__(self, place: Place, folder: Path):
        self.place, self.folder = place, folder
        self._state = folder.with_name(f"{folder.name}.mirrored.json")
        self._known: dict[str, FileState] = {}
        self._journal_sizes: dict[
            str, set[int]
        ] = {}  # a journal's name -> how long it may be there

    def pull(self) -> int:
        """Fetch what the bucket has and this machine has not; return how many files are there.

        Raises:
          ValueError: where a file here and the one there went different ways.
        """
        listed = self._list()
        known = read_json(self._state) if self._state.is_file() else {}
        was = {name: FileState(tuple(value[0]), value[1]) for name, value in known.items()}
        journals = [name for name in listed if PurePosixPath(name).name == journal_end.FILE]
        fresher = {str(PurePosixPath(name).parent) for name in journals if self._is_behind(name)}
        for name in sorted(listed, key=_order):
            path, study = self.folder / name, _study_of(name, journals)
            there = digest_of(listed[name])
            is_wanted = study in fresher if study else self._is_newer(name, there, was.get(name))
            if is_wanted or not path.is_file():
                write_atomic(path, (self.place / name).read())
            elif was.get(name) != FileState(_stamp(path), there):
                continue
            self._known[name] = FileState(_stamp(path), there)
        for name in journals:
            self._journal_sizes[name] = {int(listed[name]["size"])}
        return len(listed)

    def _is_newer(self, name: str, there: str, was: FileState | None) -> bool:
        """Tell whether the bucket has a file of no study in a newer form than this machine.

        Raises:
          ValueError: where both have changed since they were the same.
        """
        path = self.folder / name
        if not path.is_file() or (was is not None and was.there == there):
            return False
        if was is not None and was.here == _stamp(path):
            return True
        if (self.place / name).read() == path.read_bytes():
            return False
        raise ValueError(self._parted(name))

    def _is_behind(self, name: str) -> bool:
        """Tell whether a journal here lacks lines that the bucket has."""
        path = self.folder / name
        here = path.read_bytes() if path.is_file() else b""
        there = (self.place / name).read()
        if here.startswith(there):
            return False
        if there.startswith(here):
            return True
        raise ValueError(self._parted(name))

    def _parted(self, name: str) -> str:
        return (
            f"{self.place.address}/{name} and its copy here, {self.folder / name}, have gone "
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
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        stamps = {
            path.relative_to(self.folder).as_posix(): _stamp(path)
            for path in paths
            if path.name not in LAST and not path.name.endswith((".part", *LOCK_FILES))
        }
        stamps |= {name: stamp for name, (stamp, _) in ends.items()}
        changed = [name for name, stamp in stamps.items() if self._stamp_there(name) != stamp]
        if not changed:
            return
        for name in ends:
            if PurePosixPath(name).name == journal_end.FILE:
                self._check_journal(name)

        # All else, then journals, then marks.
        for name in sorted(changed, key=lambda name: (_order(name), name)):
            content = ends[name][1] if name in ends else (self.folder / name).read_bytes()
            if PurePosixPath(name).name == journal_end.FILE:
                # Also where the bucket's reply is lost.
                self._journal_sizes.setdefault(name, {0}).add(len(content))
            (self.place / name).put(content)
            if name in self._journal_sizes:
                self._journal_sizes[name] = {len(content)}
            self._known[name] = FileState(stamps[name], "")
        self._keep_state()

    def _stamp_there(self, name: str) -> tuple[int, int] | None:
        """Return the time and size here of what the bucket has under a name."""
        return self._known[name].here if name in self._known else None

    def _keep_state(self) -> None:
        """Write down what is the same here and there."""
        listed = self._list()
        for name in set(self._known) & set(listed):
            self._known[name] = self._known[name]._replace(there=digest_of(listed[name]))
        state = {name: [list(known.here), known.there] for name, known in self._known.items()}
        write_atomic(self._state, json.dumps(state))

    def _read_ends(self) -> dict[str, tuple[tuple[int, int], bytes]]:
        """Read the marks of journals' ends, then their whole lines: name -> time and size, content.

        A journal may have more lines than its mark says.
        """
        ends = {}
        for file in reversed(LAST):
            for path in self.folder.rglob(file):
                time_ns = path.stat().st_mtime_ns  # before the content: what changes now is new
                content = path.read_bytes()
                if file == journal_end.FILE:
                    content = content[: content.rfind(b"\n") + 1]
                name = path.relative_to(self.folder).as_posix()
                ends[name] = ((time_ns, len(content)), content)
        return ends

    def _check_journal(self, name: str) -> None:
        """Check that a journal in the bucket is as this process left it."""
        there, files = self.place / name, self.place.files
        files.invalidate_cache()
        is_there = there.call(lambda: files.exists(there.path))
        found = int(there.call(lambda: files.size(there.path))) if is_there else 0
        expected = self._journal_sizes.get(name, {0})
        if found not in expected:
            raise ValueError(
                f"{there.address} has {found:,} bytes, where this process left {max(expected):,}: "
                "another process writes to this work directory; stop one of the two"
            )

    def _list(self) -> dict[str, dict[str, Any]]:
        """List the bucket's folder as it is now."""
        self.place.files.invalidate_cache()
        return self.place.list_files()


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
