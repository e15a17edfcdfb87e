"""Files on the web, fetched once into the user's cache folder.

A file is kept once its content could be read, and within a limit on its size. A page in place of
the file (a login, a proxy's notice) is not kept: it would be read for ever.
"""

import http.client
import urllib.parse
import urllib.request
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TypeVar

from jaxedit.files import cache_folder

T = TypeVar("T")

TIMEOUT_S = 60
MOST_BYTES = 4 << 30  # far more than any file of facts or texts
MOST_LETTERS = 60  # of a name; with four bytes each these fit the 255 of a file system
PIECE_BYTES = 1 << 20
HANDLERS = (  # urllib's own but for those of file: and ftp:, to which an address may redirect
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
)


def is_url(source: str) -> bool:
    """Return whether a source is an address on the web."""
    return source.startswith(("https://", "http://"))


def download(address: str, read: Callable[[Path], T]) -> T:
    """Fetch the file at an address once and read it; it is kept once it could be read.

    Args:
      address: of the file.
      read: makes of the file's path what is wanted; it raises a ValueError on another content.

    Returns:
      What `read` returns.

    Raises:
      ValueError: where it cannot be fetched, is too large, is a web page, or cannot be read; the
        message says why, and where a copy lies or may be put.
    """
    try:
        name = Path(urllib.parse.urlsplit(address).path).name or "file"
    except ValueError as error:  # half a bracket of an IPv6 host
        raise ValueError(_not_fetched(address, str(error))) from error
    digest = sha256(address.encode()).hexdigest()[:12]
    path = cache_folder() / "files" / f"{digest}-{name[-MOST_LETTERS:]}"
    if path.is_file():
        try:
            return read(path)
        except ValueError as error:
            raise ValueError(
                f"{error}. This is {path}, a copy of {address}; delete it to have it fetched again"
            ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each process: several may fetch the same file at once. It ends as the
    # file's, by which its kind is told.
    with NamedTemporaryFile(dir=path.parent, suffix=f"-{path.name}", delete=False) as file:
        fetched = Path(file.name)
        try:
            _fetch(address, file)
        except BaseException:
            fetched.unlink()
            raise
    try:
        value = read(fetched)
    except BaseException as error:
        fetched.unlink()
        if not isinstance(error, ValueError):
            raise
        # The user knows the address, and no name in a cache.
        said = str(error).replace(str(fetched), address).replace(fetched.name, name)
        raise ValueError(said if address in said else f"{address}: {said}") from error
    fetched.replace(path)
    return value


def _fetch(address: str, file: IO[bytes]) -> None:
    """Write what an address gives to a file.

    Raises:
      ValueError: where it gives nothing whole, too much, or a web page.
    """
    opener = urllib.request.OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    try:
        with opener.open(address, timeout=TIMEOUT_S) as response:
            promised = int(response.headers.get("Content-Length") or -1)
            n_bytes, piece, first = max(promised, 0), b"", b""
            n_read = 0
            while n_bytes <= MOST_BYTES and (piece := response.read(PIECE_BYTES)):
                first = first or piece
                file.write(piece)
                n_read += len(piece)
                n_bytes = max(n_bytes, n_read)
    # A status line or a chunk that is none, and a body that ends early, are no OSErrors.
    except (http.client.HTTPException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(_not_fetched(address, reason)) from error
    if n_bytes > MOST_BYTES:
        limit = f"it has {n_bytes:,} bytes or more, and {MOST_BYTES:,} is the limit"
        raise ValueError(_not_fetched(address, limit))
    if n_read < promised:
        raise ValueError(_not_fetched(address, f"{n_read:,} of {promised:,} bytes came"))
    start = first[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise ValueError(_not_fetched(address, "it gives a web page in place of the file"))
    file.flush()


def _not_fetched(address: str, reason: str) -> str:
    return (
        f"{address} could not be fetched ({reason}); "
        "fetch it by other means and give the file's path"
    )
