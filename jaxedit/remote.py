"""Files in buckets, at addresses that fsspec opens: gs://, s3://, hf://, memory:// and others.

What is fetched lies in the user's cache folder, and is fetched again once it changed there.
"""

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

from jaxedit.downloads import is_url
from jaxedit.files import cache_folder, read_json, write_atomic
from jaxedit.messages import first_line

EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}  # protocol -> the extra with its client


class Place(NamedTuple):
    """A file or folder in a bucket.

    Attributes:
      address: of it, for messages.
      files: fsspec's file system.
      path: there.
    """

    address: str
    files: Any
    path: str

    def __truediv__(self, name: str) -> "Place":
        """Return the place of a name in this folder."""
        return Place(f"{self.address.rstrip('/')}/{name}", self.files, f"{self.path}/{name}")

    def call(self, work: Callable[[], Any]) -> Any:
        """Return what an operation on this place returns.

        Raises:
          ValueError: where it fails; the message names the address and the reason.
        """
        try:
            return work()
        except FileNotFoundError as error:
            raise ValueError(f"there is nothing at {self.address}") from error
        except Exception as error:  # each bucket's client has its own
            raise ValueError(
                f"{self.address} could not be used ({type(error).__name__}: {first_line(error)}); "
                "check the address and that this machine is logged in there"
            ) from error

    def read(self, first: int = 0, end: int | None = None) -> bytes:
        """Read a range of a file, or all of it."""
        return self.call(lambda: self.files.cat_file(self.path, first, end))

    def put(self, content: bytes) -> None:
        """Write a whole file, which there is afterwards, or as it was before."""
        folder = self.path.rpartition("/")[0]
        self.call(lambda: self.files.makedirs(folder, exist_ok=True))
        self.call(lambda: self.files.pipe_file(self.path, content))

    def list_files(self) -> dict[str, dict[str, Any]]:
        """List a folder's files, or a file itself: name from here on -> what is known of it."""
        found = self.call(lambda: self.files.find(self.path, detail=True))
        listed = {}
        for path, about in found.items():
            name = path.removeprefix(self.path).lstrip("/") or PurePosixPath(path).name
            if ".." in PurePosixPath(name).parts:
                raise ValueError(f"{self.address} holds {name[:80]!r}, which is no usable name")
            listed[name] = about
        return listed


def is_remote(place: str) -> bool:
    """Return whether a place is an address in a bucket; one on the web is not."""
    return "://" in place and not is_url(place)


def open_place(address: str) -> Place:
    """Find the file system of an address.

    Raises:
      ValueError: where none is known or its client is not installed; the message says what to do.
    """
    import fsspec

    protocol = address.partition("://")[0]
    try:
        files, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install 'jaxedit[{extra}]'" if extra else first_line(error)
        raise ValueError(f"{protocol}:// needs a client that is not installed: {remedy}") from error
    except Exception as error:
        raise ValueError(f"{address} is no usable address ({first_line(error)})") from error
    return Place(address, files, path.rstrip("/"))


def fetch_file(address: str) -> Path:
    """Fetch a file, once; return where its copy lies.

    Raises:
      ValueError: where it cannot be had.
    """
    listed = open_place(address).list_files()
    name = PurePosixPath(address).name
    if list(listed) != [name]:
        found = f"a folder of {len(listed):,} files is" if listed else "nothing is"
        raise ValueError(f"{found} at {address}; expected a file")
    return fetch_folder(address, [name]) / name


def fetch_folder(address: str, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> Path:
    """Fetch the files of a folder, those that are new or changed; return where the copies lie.

    Args:
      address: of the folder, or of a file.
      wanted: patterns of the names of files to fetch.
      unwanted: patterns of those that are not, though they are wanted.

    Raises:
      ValueError: where nothing lies there, or it cannot be had.
    """
    place = open_place(address)
    listed = place.list_files()
    if not listed:
        raise ValueError(f"there is nothing at {address}")
    is_file = list(listed) == [PurePosixPath(address).name]
    folder = cache_folder() / "remote" / sha256(address.rstrip("/").encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    fetched = folder.with_suffix(".json")  # name -> digest of what was known of it
    known = read_json(fetched) if fetched.is_file() else {}
    now = {name: digest_of(about) for name, about in listed.items()}

    # What is gone there is gone here; what is the same there is not fetched again.
    for name in set(known) - set(now):
        (folder / name).unlink(missing_ok=True)
    for name in _matching(now, wanted, unwanted):
        if known.get(name) == now[name] and (folder / name).is_file():
            continue
        _fetch(place if is_file else place / name, folder / name)
        known[name] = now[name]
    known = {name: digest for name, digest in known.items() if name in now}
    write_atomic(fetched, json.dumps(known))
    return folder


def _matching(names: Mapping[str, str], wanted: Sequence[str], unwanted: Sequence[str]) -> list:
    """List the names that are wanted."""

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return [name for name in names if matches(name, wanted) and not matches(name, unwanted)]


def _fetch(place: Place, path: Path) -> None:
    """Fetch one file; it is there whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each process: several may fetch the same file at once.
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        fetched = Path(file.name)
    try:
        place.call(lambda: place.files.get_file(place.path, str(fetched)))
        fetched.replace(path)
    finally:
        fetched.unlink(missing_ok=True)


def digest_of(about: Mapping[str, Any]) -> str:
    """Digest what a file system knows of a file: its size, and its time or version."""
    text = json.dumps({key: str(about[key]) for key in sorted(about)})
    return sha256(text.encode()).hexdigest()
