"""Where facts and texts lie: a file, an address on the web (fetched once), a data set of the `datasets` library."""

import hashlib
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HUB_PREFIX = "datasets:"
WAIT_S = 60


def is_address(source: str) -> bool:
    """Whether a source is an address on the web."""
    return source.startswith(("https://", "http://"))


def fetched(address: str) -> Path:
    """The file at an address, which is fetched once and then kept in the user's cache folder.

    Raises:
      ValueError: where it cannot be fetched; the message says why and where a copy may be put.
    """
    name = Path(urllib.parse.urlsplit(address).path).name or "file"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "jaxedit" / "files" / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(address, timeout=WAIT_S) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ValueError(
            f"{address} could not be fetched ({error}); fetch it by other means and give the file's path"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)  # whole or not there, also with several processes
    return path


def hub_rows(name: str, n_rows: int | None = None, expected: str = "a file") -> Iterator[dict[str, Any]]:
    """The rows of a data set NAME[,CONFIG[,SPLIT]] of the `datasets` library, streamed.

    Raises:
      ValueError: where it cannot be had.
    """
    import datasets  # slow to import

    dataset, config, split = (*name.split(","), "", "")[:3]
    try:
        rows = datasets.load_dataset(dataset, config or None, split=split or "train", streaming=True)
        yield from rows if n_rows is None else rows.take(n_rows)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the data set {name!r} could not be had ({type(error).__name__}: {said}); without a network give {expected}, or "
            "a directory of them"
        ) from error
