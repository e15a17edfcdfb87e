"""Files on disk: atomic writes, locks, formats, and where what is kept between runs lies."""

import contextlib
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from safetensors.numpy import save

LOCK_FILES = (".lock", ".lock-owner")  # in a folder that a process owns while it writes


def to_json(value: Any) -> Any:
    """Convert a value to what JSON can hold.

    Arrays become lists. Numbers that are not finite become strings that `float` reads ("inf").
    """
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def flatten_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Serialise arrays and metadata to the content of a .safetensors file."""
    # safetensors writes an array's memory as it lies, so one in Fortran's order would come back
    # scrambled.
    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(in_order, dict(metadata))


def parse_json(
    content: str | bytes,
    source: object,
    kind: type | tuple[type, ...] = dict,
    line: int | None = None,
) -> Any:
    """Parse JSON that came from outside.

    Args:
      content: of the file.
      source: its path or address, for the message.
      kind: what the outermost value must be: dict, list, or both.
      line: of the file, where the content is one line of it.

    Raises:
      ValueError: where it is not UTF-8 or not JSON, is nested too deeply, holds a number that is
        too long or half a surrogate pair, or is of another kind.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text)
        if "\\ud" in text.lower():  # an escaped surrogate: Python keeps half a pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        place = _place(text, line)
        raise ValueError(
            f"{source}{place} holds half a surrogate pair, which is no text"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text ({error})") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno + (line or 1) - 1}, column {error.colno}"
        raise ValueError(f"{source} is not JSON: {error.msg} at {at}") from error
    except RecursionError as error:
        place = _place(text, line)
        raise ValueError(f"{source}{place} is no usable JSON: it is nested too deeply") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise ValueError(f"{source}{_place(text, line)} is no usable JSON: {error}") from error
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list", str: "a string"}
        wanted = " or ".join(names[each] for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{source} must hold {wanted}; it holds {shorten_json(value)}")
    return value


def _place(text: str, line: int | None) -> str:
    """Say where in a file what cannot be read stands: its line, or which record of a list."""
    if line is not None:
        return f", line {line},"
    decoder, i, sign = json.JSONDecoder(), 0, re.compile(r"\s*([\[,]?)\s*")
    found = sign.match(text)
    while found and found[1] == ("," if i else "["):
        try:
            value, at = decoder.raw_decode(text, found.end())
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return f", record {i} (counted from 0),"
        i, found = i + 1, sign.match(text, at)
    return ""


def read_json(path: Path, kind: type | tuple[type, ...] = dict) -> Any:
    """Read a JSON file; the one way to do so.

    Args:
      path: of the file.
      kind: what the outermost value must be: dict, list, or both.

    Raises:
      ValueError: where its content is not that (`parse_json`).
      OSError: where it cannot be read.
    """
    return parse_json(path.read_bytes(), path, kind)


def shorten_json(value: Any, n_letters: int = 80) -> str:
    """Write a value as JSON for a message, cut to so many letters."""
    try:
        text = json.dumps(to_json(value), ensure_ascii=True, default=str)
    except RecursionError:
        text = "what is nested too deeply"
    return text if len(text) <= n_letters else f"{text[: n_letters - 3]}..."


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write content so that its file is on the disk whole, or as it was before.

    The folder is synced too: what is written afterwards never refers to a file that a power cut
    has taken.

    Raises:
      OSError: where the disk is full or not writable; nothing is left of the attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise with_file_name(error, path) from error
    sync_folder(path.parent)


def with_file_name(error: OSError, path: Path) -> OSError:
    """Return an error of the system whose message names the file, as those of writing do not."""
    return error if error.filename else OSError(error.errno, error.strerror, str(path))


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of files to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows, and some network file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def partial_path(path: Path) -> Path:
    """Return where a file is written before it is whole: its name with ".part" behind."""
    return path.with_name(f"{path.name}.part")


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Own a folder: no other process that asks for it has it at the same time.

    The system releases the lock however this process ends. On a file system without locks a file
    stands for it, which may be removed where its process is gone.

    Raises:
      ValueError: where another process owns it; the message names its host and number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = (folder / name for name in LOCK_FILES)
    with _hold_lock(lock, owner, f"{folder} is", "folder"):
        yield


@contextlib.contextmanager
def exclusive_target(path: Path) -> Iterator[None]:
    """Own the name of a file, or of a folder that comes to be as a whole, while it is written.

    The lock lies beside it, as a hidden file which stays there; else as `exclusive_lock`.

    Raises:
      ValueError: where another process writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = (path.with_name(f".{path.name}{name}") for name in LOCK_FILES)
    with _hold_lock(lock, owner, f"{path} is", "name"):
        yield


@contextlib.contextmanager
def _hold_lock(path: Path, owner: Path, what: str, other: str) -> Iterator[None]:
    """Hold a lock; `owner` is the file that names who does, the rest is for the message."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        by = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        raise ValueError(
            f"{what} in use by {by}; wait for its end or stop it, or give another {other}"
        ) from error
    except (OSError, NotImplementedError):  # no locks, or not writable, as the next write will say
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a full disk; only the message of others needs it
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def expand_home(place: str | os.PathLike[str]) -> str:
    """Return a place as text, the user's home for a leading ~; names and addresses stay."""
    text = os.fspath(place)
    return str(local_path(text)) if text.startswith("~") else text


def local_path(place: str | os.PathLike[str]) -> Path:
    """Return the path of a place on this machine, a leading ~ as the user's home.

    The shell leaves ~ alone where it does not begin a word, as in --out=~/x.
    """
    try:
        return Path(place).expanduser()
    except RuntimeError:  # "~name" of no user: a name like any other
        return Path(place)


def cache_folder() -> Path:
    """Return the folder of what is kept between runs: in $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxedit"
