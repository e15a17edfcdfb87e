"""Rounding up: the definitions, for numbers at and around multiples and powers."""

import pytest

from jaxedit.rounding import ceil_div, next_power_of_two, read_whole_number, round_up


@pytest.mark.parametrize(("n", "divisor", "expected"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)])
def test_ceil_div_rounds_up(n, divisor, expected):
    assert ceil_div(n, divisor) == expected


def test_ceil_div_is_exact_where_floats_are_not():
    assert ceil_div(2**60 + 1, 2) == 2**59 + 1


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 16), (16, 16), (17, 32)])
def test_round_up_gives_the_least_multiple(n, expected):
    assert round_up(n, 16) == expected


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1025, 2048)])
def test_next_power_of_two(n, expected):
    assert next_power_of_two(n) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("007", 7), ("1000000000", 10**9), ("1000000001", None), ("0" * 5000 + "1", None)]
    + [(text, None) for text in ("", "²", "٣", "-1", "+1", "1_0", " 1", "1.0", "9" * 5000)],
)
def test_a_whole_number_is_in_the_digits_0_to_9_and_within_a_limit(text, expected):
    assert read_whole_number(text) == expected
