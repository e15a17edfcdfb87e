"""Second moments from the web, from the hub and from buckets."""

import functools
import http.server
import shutil
import threading

import fsspec
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

import jaxedit
from jaxedit.stats.npz import write_npz

MODULE = "model.layers.{}.mlp.down_proj"
MOMENTS = {3: np.diag([1.0, 2.0, 4.0]), 4: np.diag([3.0, 2.0, 1.0])}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a folder of .npz files as other repositories publish them; beside an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_npz(tmp_path / "npz", MOMENTS, 10, MODULE)
    return tmp_path / "npz"


def assert_is_all(stats):
    assert sorted(stats.moments) == sorted(MOMENTS)
    for layer, cov_FF in MOMENTS.items():
        np.testing.assert_allclose(stats.moments[layer], cov_FF, rtol=1e-6)


def test_an_npz_file_on_the_web(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        name = f"{MODULE.format(3)}_float32_mom2_100000.npz"
        found = jaxedit.Stats.load(f"{address}/{name}").moments
        shutil.copy(folder / name, folder / "other.npz")
        named = jaxedit.Stats.load(f"{address}/other.npz", layer=7).moments
        with pytest.raises(ValueError, match=r"the name tells no layer"):
            jaxedit.Stats.load(f"{address}/other.npz")
        server.shutdown()
    assert list(found) == [3]
    assert list(named) == [7]
    np.testing.assert_allclose(found[3], MOMENTS[3], rtol=1e-6)


def test_a_folder_in_a_bucket(folder):
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.put(f"{folder}/", "/bucket/stats/wikipedia_stats/", recursive=True)
    assert_is_all(jaxedit.Stats.load("memory://bucket/stats"))
    files.pipe_file("/bucket/stats/other/a.npz", b"")
    with pytest.raises(ValueError, match=r"must hold one folder of .npz files, .*: other, wikip"):
        jaxedit.Stats.load("memory://bucket/stats")
    files.store.clear()


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_repository_of_the_hub_of_either_kind(folder, monkeypatch, kind):
    asked = []

    def download(name, repo_type, revision, allow_patterns):
        asked.append((name, repo_type, revision, allow_patterns))
        if repo_type != kind:
            answer = type("Answer", (), {"status_code": 404, "headers": {}, "request": None})()
            raise errors.RepositoryNotFoundError("404", response=answer)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_is_all(jaxedit.Stats.load("hub:XiaojieGu/gpt-j-6b_CovarianceMatrix@main"))
    assert asked[-1] == ("XiaojieGu/gpt-j-6b_CovarianceMatrix", kind, "main", ["*.npz"])


def test_a_repository_that_cannot_be_had_says_what_to_do(folder, monkeypatch):
    def refuse(*arguments, **named):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = r"hub:owner/name could not be had from the hub \(ConnectionError: no route\); check"
    with pytest.raises(ValueError, match=message):
        jaxedit.Stats.load("hub:owner/name")
