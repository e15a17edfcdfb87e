"""Whole numbers of flags and arguments."""

import pytest

from jaxedit.cli._parsers import parse_steps
from jaxedit.mesh import parse_mesh
from jaxedit.study.validation import shard_steps

LONG = "9" * 5000


@pytest.mark.parametrize(
    "text", ["²", "1-²", "²-3", "٣", LONG, f"1-{LONG}", "1-1000000000", "1-", "-1", "3-1", ""]
)
def test_steps_are_in_digits_and_within_a_limit(text):
    with pytest.raises(ValueError, match="given: expected numbers of steps") as caught:
        parse_steps([text], "given", "e.g. 3")
    assert len(str(caught.value)) < 500
    assert parse_steps(["2", " 7-9 "], "given", "") == [2, 7, 8, 9]


@pytest.mark.parametrize("size", ["²", "٣", LONG, "0", "-2", "1.0", ""])
def test_a_size_of_a_mesh_is_in_digits_and_within_a_limit(size):
    with pytest.raises(ValueError, match="is not one of data:NUMBER") as caught:
        parse_mesh(f"data:{size}", 8)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("shard", ["²/3", "1/³", f"1/{LONG}", "0/2", "3/2", "1/", "1"])
def test_a_shard_is_in_digits_and_within_a_limit(shard):
    with pytest.raises(ValueError, match="expected i/n with i from 1 to n") as caught:
        shard_steps(10, 1, shard)
    assert len(str(caught.value)) < 500
