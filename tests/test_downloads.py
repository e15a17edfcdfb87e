"""Files on the web: what a server may answer, and what of it is kept."""

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from jaxedit import downloads
from jaxedit.datasets import read_requests, read_texts
from jaxedit.downloads import download
from jaxedit.files import cache_folder, read_json

OK = "HTTP/1.1 200 OK\r\nConnection: close\r\n"


@pytest.fixture
def serve(tmp_path, monkeypatch) -> Iterator[Callable[..., str]]:
    """Make a function: answers -> an address; each connection is sent the next one as it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    servers = []

    def start(*answers: str | bytes, name: str = "facts.json") -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        servers.append(listener)

        def run() -> None:
            for answer in answers:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed: not all were asked for
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer.encode() if isinstance(answer, str) else answer)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/{name}"

    yield start
    for each in servers:
        each.close()


def kept() -> list[str]:
    """Return the names of the files in the cache."""
    folder = cache_folder() / "files"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (f"{OK}Content-Length: 100\r\n\r\n[1]", "3 of 100 bytes came"),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\nzz\r\n[1]\r\n", "IncompleteRead"),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\nff\r\n[1]", "IncompleteRead"),
        ("nonsense\r\n\r\n", "nonsense"),
        ("", "closed connection|reset"),
        (f"{OK}Content-Length: many\r\n\r\n[1]", "many"),
        (f"{OK}Content-Length: 99999999999\r\n\r\n", "99,999,999,999 bytes or more"),
        (f"{OK}Content-Type: text/html\r\n\r\n\n <!DOCTYPE html><p>Log in", "it gives a web page"),
        (f"{OK}\r\n\ufeff<HTML><p>Log in", "it gives a web page"),
        ("HTTP/1.1 404 Not Found\r\n\r\n", "HTTP Error 404"),
        ("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "not allowed"),
        ("HTTP/1.1 302 Found\r\nLocation: ftp://a.b/c\r\n\r\n", "unknown url type: ftp"),
        ("HTTP/1.1 302 Found\r\nLocation: http://[::1/c\r\n\r\n", "IPv6"),
    ],
)
def test_an_answer_that_is_no_whole_file_is_one_error_and_is_not_kept(serve, answer, reason):
    address = serve(answer)
    message = rf"(?s){address} could not be fetched \([^\n]*({reason})[^\n]*give the file's path"
    with pytest.raises(ValueError, match=message):
        read_requests(address)
    assert kept() == []


def test_a_loop_of_redirects_is_an_error_in_one_line(serve):
    address = serve(*["HTTP/1.1 302 Found\r\nLocation: facts.json\r\n\r\n"] * 20)
    with pytest.raises(ValueError, match=r"could not be fetched \(.*infinite loop") as caught:
        read_requests(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/a b.json", "http://[::1/a.json", "http://127.0.0.1:x/a.json"]
)
def test_an_address_that_cannot_be_one_is_an_error(address):
    with pytest.raises(ValueError, match="could not be fetched"):
        read_texts(address)


def test_more_than_the_limit_is_not_read_to_its_end(serve, monkeypatch):
    monkeypatch.setattr(downloads, "MOST_BYTES", 100)
    monkeypatch.setattr(downloads, "PIECE_BYTES", 60)
    text = json.dumps(["x" * 1000])
    with pytest.raises(ValueError, match="has 120 bytes or more, and 100 is the limit"):
        read_texts(serve(f"{OK}\r\n{text}"))
    assert kept() == []


def test_what_cannot_be_read_is_fetched_again_and_what_can_is_kept(serve):
    address = serve(f"{OK}\r\nno JSON", f'{OK}\r\n["a text"]')
    with pytest.raises(ValueError, match="is not JSON"):
        read_texts(address)
    assert kept() == []
    assert read_texts(address) == read_texts(address) == ["a text"]
    assert len(kept()) == 1


def test_what_cannot_be_read_is_named_by_its_address(serve):
    """Not by the file that it was fetched into, which is gone."""
    address = serve(f"{OK}\r\nx")

    def read(path):
        raise ValueError(f"{path} is no file of facts, {path.name}")

    with pytest.raises(ValueError, match="is no file of facts") as caught:
        download(address, read)
    name = address.rpartition("/")[2]
    assert str(caught.value) == f"{address} is no file of facts, {name}"


def test_a_copy_that_cannot_be_read_is_named(serve):
    address = serve(f'{OK}\r\n["a text"]')
    read_texts(address)
    (path,) = (cache_folder() / "files").iterdir()
    path.write_text("<html>")
    with pytest.raises(ValueError, match=rf"is not JSON.* This is {path}, .*; delete it"):
        read_texts(address)


@pytest.mark.parametrize("letter", ["a", "\u00e9", "%F0%9F%98%80"])
def test_a_long_name_is_cut(serve, letter):
    name = f"{letter * 300}.json"
    address = serve(f"{OK}\r\n[1]", name=name)
    if letter.isascii():
        assert download(address, lambda path: read_json(path, list)) == [1]
        assert kept()[0].endswith(f"{name[-60:]}")
    else:
        with pytest.raises(ValueError, match="could not be fetched"):
            download(address, lambda path: read_json(path, list))
