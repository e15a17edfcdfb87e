"""Files: JSON of any number, flat keys, and writing whole or not at all."""

import errno
import json
import math
import os

import numpy as np
import pytest

from jaxedit.downloads import is_url
from jaxedit.files import flatten_keys, partial_path, to_json, write_atomic


def test_numbers_that_are_not_finite_become_strings_that_float_reads():
    value = {"a": math.inf, "b": [-math.inf, math.nan], "c": np.float32("inf"), "d": 1.5}
    written = to_json(value)
    assert written == {"a": "inf", "b": ["-inf", "nan"], "c": "inf", "d": 1.5}
    json.dumps(written, allow_nan=False)
    assert float(written["b"][0]) == -math.inf


def test_arrays_and_tuples_become_lists_and_keys_become_text():
    value = {3: np.array([[1, 2]]), "t": (1, np.int64(2)), "truth": np.bool_(True), "none": None}
    assert to_json(value) == {"3": [[1, 2]], "t": [1, 2], "truth": True, "none": None}


def test_nested_keys_are_joined_by_dots():
    tree = {"a": 1, "b": {"c": [2], "d": {"e": None}}, "f": {}}
    assert flatten_keys(tree) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_a_file_is_written_with_its_folders(tmp_path):
    write_atomic(tmp_path / "a" / "b.json", b"new")
    assert (tmp_path / "a" / "b.json").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


@pytest.mark.parametrize("name", ["stats.safetensors", "stats.part"])
def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path, monkeypatch, name):
    write_atomic(tmp_path / name, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / name, b"new")
    assert (tmp_path / name).read_bytes() == b"old"


def test_the_partial_file_is_another_one_whatever_the_suffix(tmp_path):
    assert partial_path(tmp_path / "a.part") == tmp_path / "a.part.part"


@pytest.mark.parametrize(
    ("source", "expected"), [("https://a.b/c", True), ("http://a.b", True), ("a/https://b", False)]
)
def test_addresses_on_the_web_are_told_from_paths(source, expected):
    assert is_url(source) is expected
