"""Public data sets by name, each fetched from a local server in its owners' place."""

import hashlib
import http.server
import json
import shutil
import threading
import urllib.parse

import datasets
import pytest
from record_examples import EXAMPLES

from jaxedit.datasets import PUBLIC, _public, read_requests, read_texts
from jaxedit.files import cache_folder

FORMS = {  # data set -> the form of its records
    "counterfact": "counterfact",
    "zsre": "zsre",
    "knowedit": "knowedit",
    "wikibigedit": "wikibigedit",
    "ultraeditbench": "ultraeditbench",
}
TEXTS = {"me-ppl-50": "ME-PPL_50.json", "me-ppl-1k": "ME-PPL_1k.json"}
UNPUBLISHED = {"hardcf": "screen`, and a study", "hardedit": "hardedit` makes such cases"}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Make a function: name -> a folder whose files are served as that data set's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **keys):
            super().__init__(*arguments, directory=str(folder), **keys)

        def log_message(self, format, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def serve(name):
        data = PUBLIC[name]
        paths = [urllib.parse.urlsplit(address).path for address in data.addresses]
        names = [path.rpartition("/")[2] for path in paths]
        here = tuple(f"http://127.0.0.1:{server.server_port}/{each}" for each in names)
        monkeypatch.setitem(_public.PUBLIC, name, data._replace(addresses=here))
        return folder, names

    yield serve
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_cannot_be_read_is_not_kept(served):
    """A server's refusal in place of the file is no version of it."""
    folder, (name,) = served("counterfact")
    record, expected = EXAMPLES["counterfact"]
    (folder / name).write_text('{"error": "rate limited"}')
    with pytest.raises(ValueError, match="rate limited"):
        read_requests("counterfact")
    (folder / name).write_text(json.dumps([record]))
    assert read_requests("counterfact").requests == [expected]


def test_every_data_set_is_tried_here():
    assert set(PUBLIC) == {*FORMS, *TEXTS, *UNPUBLISHED}


@pytest.mark.parametrize("name", [name for name in FORMS if name != "ultraeditbench"])
def test_facts_by_name(served, name):
    folder, files = served(name)
    record, expected = EXAMPLES[FORMS[name]]
    for file in files:
        (folder / file).write_text(json.dumps([record]))
    found = read_requests(name)
    assert found == ([expected] * len(files), 0, FORMS[name])
    shutil.rmtree(folder)
    assert read_requests(name) == found  # kept


def test_facts_by_name_out_of_the_datasets_library(monkeypatch):
    record, expected = EXAMPLES["ultraeditbench"]
    asked = []

    def load(name, *arguments, **named):
        asked.append(name)
        return datasets.Dataset.from_list([record]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_requests("ultraeditbench").requests == [expected]
    assert asked == ["XiaojieGu/UltraEditBench"]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_by_name_are_the_papers_by_their_digest(served, shared, name):
    """The file in shared data is the public one; its digest is the table's."""
    folder, (file,) = served(name)
    shutil.copy(shared / "data" / "me-ppl" / TEXTS[name], folder / file)
    assert read_texts(name) == read_texts(str(shared / "data" / "me-ppl" / TEXTS[name]))


def test_another_content_than_the_known_one_is_refused(served, shared):
    folder, (file,) = served("me-ppl-50")
    texts = (shared / "data" / "me-ppl" / "ME-PPL_50.json").read_bytes()
    (folder / file).write_bytes(texts + b" ")
    with pytest.raises(ValueError, match=r"ME-PPL_50.json has the SHA-256 .* is known to have: it"):
        read_texts("me-ppl-50")
    (folder / file).write_bytes(texts)  # what was refused was not kept
    assert len(read_texts("me-ppl-50")) == 50


def test_a_file_that_changed_since_its_first_download_is_refused(served):
    folder, (file,) = served("counterfact")
    record, _ = EXAMPLES["counterfact"]
    (folder / file).write_text(json.dumps([record]))
    read_requests("counterfact")
    digests = json.loads((cache_folder() / "files" / "digests.json").read_text())
    assert list(digests.values()) == [hashlib.sha256((folder / file).read_bytes()).hexdigest()]

    (folder / file).write_text(json.dumps([record, record]))
    for path in (cache_folder() / "files").glob("*counterfact.json"):
        path.unlink()
    with pytest.raises(ValueError, match=r"which it had when it was first fetched .*: it was"):
        read_requests("counterfact")


@pytest.mark.parametrize("name", sorted(UNPUBLISHED))
def test_what_its_authors_have_not_published_says_what_to_do(name):
    with pytest.raises(ValueError, match=rf"have not published it. `jaxedit {UNPUBLISHED[name]}"):
        read_requests(name)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"there is no file nobody; .*counterfact, zsre, knowedit"):
        read_requests("nobody")
