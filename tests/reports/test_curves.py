"""Curves of perplexity that others measured."""

import json

import pytest

from jaxedit.reports.curves import Curve, read_curves


def test_curves_are_read_by_their_names(tmp_path):
    content = {"a": {"x": [0, 2], "y": [70, "1e5"]}, "b, c": {"x": [0], "y": [1]}}
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_curves([f"{tmp_path}/c.json:b, c", f"{tmp_path}/c.json:a"])
    assert found == [Curve("b, c", [0.0], [1.0]), Curve("a", [0.0, 2.0], [70.0, 1e5])]


def test_a_curve_up_to_a_number_of_edits():
    assert Curve("a", [0, 2, 4], [1, 2, 3]).up_to(3) == Curve("a", [0, 2], [1, 2])
    assert Curve("a", [2, 4], [2, 3]).up_to(1) == Curve("a", [], [])


@pytest.mark.parametrize(
    ("chosen", "content", "message"),
    [
        ("c.json", {}, r"expected FILE\.json:NAME of a file that is there"),
        ("none.json:a", {}, r"expected FILE\.json:NAME of a file that is there"),
        ("c.json:b", {"a": {}}, "has no curve 'b'; it has a"),
        ("c.json:a", {"a": {"x": [1]}}, "'a' is no curve"),
        ("c.json:a", {"a": {"x": [1, 2], "y": [3]}}, "has 2 x and 1 y"),
        ("c.json:a", {"a": {"x": "12", "y": "34"}}, "'a' is no curve"),
        ("c.json:a", {"a": {"x": [True], "y": [1]}}, "'a' is no curve"),
        ("c.json:a", {"a": {"x": [1], "y": ["nan"]}}, "'a' is no curve"),
        ("c.json:a", {"a": 3}, "'a' is no curve"),
        ("c.json:a", [], r"c\.json must hold an object; it holds \[\]"),
    ],
)
def test_what_is_no_curve_is_refused(chosen, content, message, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_curves([str(tmp_path / chosen)])


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b'{"a": 1' + b"0" * 5000])
def test_a_file_that_is_no_json_is_named(content, tmp_path):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.json is not|c\.json.* is no usable JSON"):
        read_curves([f"{tmp_path}/c.json:a"])
