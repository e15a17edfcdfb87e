"""Rows as arrays, by the worked example of `PromptBatch`: every index and weight by hand."""

import numpy as np
import pytest

import jaxedit
from jaxedit.solving.prompt_batch import PaddedShape, common_shape, equal_chunks, to_batch
from jaxedit.solving.prompts import tokenise_request

REQUESTS = [
    jaxedit.Request("{} lives in", "Ann", "Rome"),
    jaxedit.Request("{} sings", "Bob Lee", "a song"),
]
TEMPLATES = ("{}", "So. {}")


@pytest.fixture
def tokenised(word_model):
    return [tokenise_request(word_model, request, TEMPLATES) for request in REQUESTS]


def test_the_smallest_shape(tokenised):
    """Prefixes to multiples of 8 and suffixes of 2; the last target token is in no row.

    The longest prefix is "So . Bob", the longest suffixes are "Ann lives in" and "Lee sings a".
    """
    assert common_shape(tokenised) == PaddedShape(prefix=8, suffix=4, n_read=2)
    assert common_shape(tokenised[:1]) == PaddedShape(prefix=8, suffix=4, n_read=1)


def test_the_shape_grows_with_suffix_and_prefix(word_model):
    """Nine tokens before "Ann", and eight from there to the last but one of the target."""
    long = jaxedit.Request("So So So So So So So So So {} lives in in in in", "Ann", "Rome , Rome")
    tokenised = [tokenise_request(word_model, long, ("{}",))]
    assert common_shape(tokenised) == PaddedShape(prefix=16, suffix=8, n_read=3)


def test_a_shape_counts_kl_prompts_and_bare_prompts(word_model):
    """At fact_token="last" the KL prompt's prefix can be the longest."""
    request = jaxedit.Request("{}", "Ann " * 7 + "Lee", "Rome")
    tokenised = [tokenise_request(word_model, request, ("{}",), fact_token="last")]
    assert [row.fact_position for row in tokenised[0].templates] == [7]
    assert tokenised[0].kl.fact_position == 9
    assert common_shape(tokenised).prefix == 16


def test_rows_of_the_worked_example(tokenised, ids):
    batch = to_batch(tokenised, common_shape(tokenised), n_data=1)
    rows = [
        "Ann lives in",
        "So . Ann lives in",
        "Ann",
        "Bob Lee sings a",
        "So . Bob Lee sings a",
        "Bob Lee",
    ]
    expected_BT = [ids(row) + [0] * (12 - len(row.split())) for row in rows]
    np.testing.assert_array_equal(batch.token_BT, expected_BT)
    np.testing.assert_array_equal(batch.fact_position_B, [0, 2, 0, 1, 3, 1])
    np.testing.assert_array_equal(batch.request_B, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(batch.first_row_I, [0, 3])
    np.testing.assert_array_equal(batch.bare_row_I, [0, 3])
    np.testing.assert_array_equal(batch.kl_row_I, [2, 5])


def test_reads_of_the_worked_example(tokenised, ids):
    batch = to_batch(tokenised, common_shape(tokenised), n_data=1)
    np.testing.assert_array_equal(batch.read_row_Q, [0, 0, 1, 1, 3, 3, 4, 4])
    np.testing.assert_array_equal(batch.read_offset_Q, [2, 2, 2, 2, 1, 2, 1, 2])
    expected = ids("Rome Rome Rome Rome a song a song")
    np.testing.assert_array_equal(batch.read_target_Q, expected)
    weights = [1 / 2, 0, 1 / 2, 0, 1 / 4, 1 / 4, 1 / 4, 1 / 4]
    np.testing.assert_array_equal(batch.read_weight_Q, np.float32(weights))


def test_reads_are_one_position_before_their_targets(tokenised):
    """In the whole text, which the rows hold but for the last target token."""
    batch = to_batch(tokenised, common_shape(tokenised), n_data=1)
    whole = [*tokenised[0].templates, None, *tokenised[1].templates]
    position_Q = batch.fact_position_B[batch.read_row_Q] + batch.read_offset_Q
    for row, position, target in zip(
        batch.read_row_Q, position_Q, batch.read_target_Q, strict=True
    ):
        assert whole[row].tokens[position + 1] == target
        assert batch.token_BT[row, position] == whole[row].tokens[position] != 0


def test_rows_are_filled_up_to_the_devices(tokenised):
    one, four = (to_batch(tokenised, common_shape(tokenised), n_data) for n_data in (1, 4))
    assert four.token_BT.shape == (8, 12)
    np.testing.assert_array_equal(four.token_BT[:6], one.token_BT)
    for padding in (four.token_BT, four.fact_position_B, four.request_B):
        assert not np.any(padding[6:])
    for name in one._fields[3:]:
        np.testing.assert_array_equal(getattr(four, name), getattr(one, name))


def test_a_bare_prompt_shares_the_row_of_a_template_that_begins_with_it(word_model):
    """Here the second one; "So. {}" does not, though its row holds the same words."""
    tokenised = [tokenise_request(word_model, request, TEMPLATES[::-1]) for request in REQUESTS]
    batch = to_batch(tokenised, common_shape(tokenised), n_data=1)
    np.testing.assert_array_equal(batch.first_row_I, [0, 3])
    np.testing.assert_array_equal(batch.bare_row_I, [1, 4])
    assert len(batch.token_BT) == 6


def test_a_bare_prompt_has_its_own_row_where_no_template_begins_with_it(word_model, ids):
    tokenised = [tokenise_request(word_model, request, ("So. {}",)) for request in REQUESTS]
    batch = to_batch(tokenised, common_shape(tokenised), n_data=1)
    np.testing.assert_array_equal(batch.first_row_I, [0, 3])
    np.testing.assert_array_equal(batch.kl_row_I, [1, 4])
    np.testing.assert_array_equal(batch.bare_row_I, [2, 5])
    np.testing.assert_array_equal(batch.request_B, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(batch.token_BT[5, :3], [*ids("Bob Lee"), 0])


@pytest.mark.parametrize(
    ("n_items", "largest", "sizes"),
    [(5, 5, [5]), (5, 8, [5]), (5, 4, [3, 3]), (7, 3, [3, 3, 3]), (4, 2, [2, 2]), (1, 9, [1])],
)
def test_chunks_are_few_equal_and_in_order(n_items, largest, sizes):
    chunks, n = equal_chunks(list(range(n_items)), largest)
    assert n == n_items
    assert list(map(len, chunks)) == sizes
    flat = [item for chunk in chunks for item in chunk]
    assert flat[:n] == list(range(n_items))
    assert set(flat[n:]) <= {n_items - 1}  # filled up with the last item
