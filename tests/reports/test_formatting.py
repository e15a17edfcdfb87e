"""Numbers and tables as reports show them."""

import math

import numpy as np
import pytest

from jaxedit.reports.formatting import (
    HIGHEST_PPL,
    clip_for_plot,
    format_number,
    format_statistic,
    markdown_table,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.000123456, "0.000123"),
        (1.23456, "1.23"),
        (9.99, "9.99"),
        (10.26, "10.3"),
        (999.94, "999.9"),
        (999.96, "1,000"),
        (1000, "1,000"),
        (1234567.8, "1,234,568"),
        (-12.34, "-12.3"),
        (-1e4, "-10,000"),
        (math.inf, "inf"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("2.5", "2.5"),
    ],
)
def test_a_number_has_about_three_figures(value, text):
    assert format_number(value) == text


def test_a_statistic_that_is_not_there_is_a_dash():
    assert format_statistic(0.12345, 2) == "0.12"
    assert format_statistic(-1.0, 3) == "-1.000"
    assert format_statistic(math.nan, 3) == "–"


def test_what_is_not_finite_is_drawn_at_ten_times_the_highest():
    heights, top = clip_for_plot([25.0, math.inf, 4e4, math.nan])
    np.testing.assert_array_equal(heights, [25.0, 4e5, 4e4, 4e5])
    assert top == 4e5


def test_the_top_is_over_the_collapse_even_if_all_others_are_low():
    assert clip_for_plot([25.0, math.inf])[0].tolist() == [25.0, 1e4]


def test_a_perplexity_beyond_what_an_axis_can_show_is_drawn_at_the_top():
    heights, top = clip_for_plot([25.0, 1e300])
    assert heights.tolist() == [25.0, top]
    assert top == pytest.approx(10 * HIGHEST_PPL)


def test_a_markdown_table():
    assert markdown_table(["a", "|b|"], [["1", "2"], ["3", "x|y\r\nz"]]) == [
        "| a | \\|b\\| |",
        "|---|---:|",
        "| 1 | 2 |",
        "| 3 | x\\|y⏎⏎z |",
    ]
    assert markdown_table(["a", "b"], [], [True, False])[1] == "|---:|---|"
