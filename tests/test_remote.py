"""Files in buckets, of which fsspec's own memory:// stands for all."""

import json
import time

import fsspec
import numpy as np
import pytest

import jaxedit
from jaxedit.datasets import read_corpus, read_requests, read_texts
from jaxedit.remote import fetch_file, fetch_folder, is_remote, open_place

FACT = {"prompt": "{} is in", "subject": "Rome", "target_new": "Peru"}


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """Return an empty bucket, memory://bucket, beside an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.makedirs("/bucket", exist_ok=True)
    yield files
    files.store.clear()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("gs://bucket/model", True),
        ("s3://bucket/facts.json", True),
        ("hf://owner/name", True),
        ("https://example.org/facts.json", False),
        ("datasets:NAME", False),
        ("runs/a", False),
    ],
)
def test_what_lies_in_a_bucket_is_told_by_its_address(place, expected):
    assert is_remote(place) == expected


def test_a_file_is_fetched_once_and_again_when_it_changed(bucket, monkeypatch):
    bucket.pipe_file("/bucket/a.txt", b"one")
    gets = []
    get_file = type(bucket).get_file
    monkeypatch.setattr(
        type(bucket), "get_file", lambda *args, **named: (gets.append(args), get_file(*args))
    )
    assert fetch_file("memory://bucket/a.txt").read_bytes() == b"one"
    assert fetch_file("memory://bucket/a.txt").read_bytes() == b"one"
    assert len(gets) == 1
    time.sleep(0.01)
    bucket.pipe_file("/bucket/a.txt", b"two")
    assert fetch_file("memory://bucket/a.txt").read_bytes() == b"two"
    assert len(gets) == 2


def test_a_folder_is_as_it_is_in_the_bucket(bucket):
    for name in ("a.json", "b.json", "sub/c.json", "d.bin"):
        bucket.pipe_file(f"/bucket/m/{name}", name.encode())
    folder = fetch_folder("memory://bucket/m", ["*.json"], ["*/*"])
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["a.json", "b.json"]
    bucket.rm("/bucket/m/a.json")
    assert fetch_folder("memory://bucket/m/", ["*"]) == folder
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("[!.]*"))
    assert names == ["b.json", "d.bin", "sub", "sub/c.json"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/none.json", "there is nothing at memory://bucket/none.json|nothing is"),
        ("memory://bucket/m", "a folder of 1 files is at memory://bucket/m; expected a file"),
        ("nosuch://bucket/a", "nosuch://bucket/a is no usable address .Protocol not known"),
        ("gs://bucket/a", r"gs:// needs a client .*pip install 'jaxedit\[gcs\]'"),
        ("s3://bucket/a", r"s3:// needs a client .*pip install 'jaxedit\[s3\]'"),
    ],
)
def test_what_cannot_be_had_says_why(bucket, address, message):
    bucket.pipe_file("/bucket/m/a.json", b"[]")
    with pytest.raises(ValueError, match=message):
        fetch_file(address)


def test_a_bucket_that_refuses_is_named(bucket, monkeypatch):
    def refuse(*args, **named):
        raise PermissionError("403: not yours\nmore")

    monkeypatch.setattr(type(bucket), "cat_file", refuse)
    with pytest.raises(ValueError, match=r"memory://bucket/a could not be used .*403: not yours\)"):
        open_place("memory://bucket/a").read()


def test_names_that_lead_out_of_a_folder_are_refused(bucket, monkeypatch):
    monkeypatch.setattr(
        type(bucket), "find", lambda *args, **named: {"/bucket/m/../../evil": {"size": 1}}
    )
    with pytest.raises(ValueError, match=r"'\.\./\.\./evil', which is no usable name"):
        fetch_folder("memory://bucket/m", ["*"])


def test_facts_texts_and_corpora_are_read(bucket):
    bucket.pipe_file("/bucket/facts.json", json.dumps([FACT]).encode())
    bucket.pipe_file("/bucket/texts/a.txt", b"first\nsecond\n")
    bucket.pipe_file("/bucket/texts/b.json", b'["third"]')
    bucket.pipe_file("/bucket/texts/deep/c.txt", b"not read")
    assert read_requests("memory://bucket/facts.json").requests[0].subject == "Rome"
    assert read_texts("memory://bucket/texts/a.txt") == ["first", "second"]
    assert read_corpus("memory://bucket/texts/a.txt") == ["first", "second"]
    assert read_corpus("memory://bucket/texts") == ["first", "second", "third"]


def test_second_moments_are_read(bucket, tmp_path):
    stats = jaxedit.Stats.from_moments({3: np.eye(4, dtype=np.float32)}, 10, {})
    stats.save(tmp_path / "stats.safetensors")
    bucket.put_file(str(tmp_path / "stats.safetensors"), "/bucket/stats.safetensors")
    found = jaxedit.Stats.load("memory://bucket/stats.safetensors")
    assert found.digest == stats.digest
