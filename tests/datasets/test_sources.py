"""Facts and texts from addresses and from data sets of the `datasets` library."""

import http.server
import json
import threading

import pytest

from jaxedit.datasets import read_requests, read_texts

FACTS = [{"prompt": "{} lives in", "subject": "BP", "target_new": "French"}]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve a folder: (folder, its address, the paths asked for, a function that stops it)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **keys):
            super().__init__(*arguments, directory=str(folder), **keys)

        def log_message(self, format, *arguments):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    yield folder, f"http://127.0.0.1:{server.server_port}", asked, stop
    if thread.is_alive():
        stop()


def test_an_address_is_fetched_once(served):
    folder, address, asked, stop = served
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.txt").write_text(" one\ntwo\n", encoding="utf-8")
    wanted = read_requests(str(folder / "facts.json"))
    assert read_requests(f"{address}/facts.json") == wanted
    assert read_texts(f"{address}/texts.txt?download=true") == [" one", "two"]
    assert len(asked) == 2
    stop()
    assert read_requests(f"{address}/facts.json") == wanted  # from the copy
    with pytest.raises(ValueError, match=r"texts\.txt could not be fetched .*give the file's path"):
        read_texts(f"{address}/texts.txt")


def test_an_address_without_a_file(served):
    _, address, _, _ = served
    with pytest.raises(ValueError, match=r"none\.json could not be fetched \(HTTP Error 404"):
        read_requests(f"{address}/none.json")


def test_facts_of_the_datasets_library(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, **options):
        asked.append((name, config, options["split"]))
        return datasets.Dataset.from_list(FACTS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_requests("datasets:some/facts,,test")
    assert [request.summary for request in found.requests] == ["BP lives in → French"]
    assert asked == [("some/facts", None, "test")]

    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        ValueError, match=r"'some/facts' could not be had \(ConnectionError: no route to host\)"
    ):
        read_requests("datasets:some/facts")
