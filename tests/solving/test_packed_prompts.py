"""Packed requests, by the worked example of `PackedPrompts`: every index and weight by hand."""

import numpy as np
import pytest

import jaxedit
from jaxedit.solving import packed_prompts
from jaxedit.solving.packed_prompts import pack_prompts

ANN = jaxedit.Request("{} lives in", "Ann", "Rome")
BOB = jaxedit.Request("{} sings", "Bob Lee", "a song")
GROUPS = (("{}",), ("So. {}",))


def padded(tokens: list[int], width: int = 8) -> list[int]:
    return tokens + [0] * (width - len(tokens))


def test_the_worked_example(word_model, ids):
    packed = pack_prompts(word_model, [ANN, BOB], GROUPS, "group_means")
    np.testing.assert_array_equal(packed.shared_CO, [padded([]), padded(ids("So ."))])
    np.testing.assert_array_equal(packed.n_shared_C, [0, 2])
    np.testing.assert_array_equal(packed.weight_C, [0.5, 0.5])
    np.testing.assert_array_equal(packed.template_GB, [[0, 1]])
    np.testing.assert_array_equal(packed.token_GBT, [[padded(ids("Bob Lee Ann"))] * 2])
    np.testing.assert_array_equal(packed.offset_GBT, [[padded([0, 1, 0])] * 2])
    np.testing.assert_array_equal(packed.segment_GBT, [[padded([1, 1, 2])] * 2])
    expected_Q4 = [[0, 1, 0, 1], [0, 2, 0, 0], [1, 1, 1, 1], [1, 2, 1, 0]]
    np.testing.assert_array_equal(packed.place_GQ4, [expected_Q4])
    assert packed.bare == 0
    assert packed.n_requests == 2


def test_one_request_alone_shares_nothing(word_model, ids):
    packed = pack_prompts(word_model, [ANN], GROUPS, "mean")
    np.testing.assert_array_equal(packed.n_shared_C, [0, 0])
    np.testing.assert_array_equal(packed.token_GBT[0, 1], padded(ids("So . Ann")))
    np.testing.assert_array_equal(packed.place_GQ4, [[[0, 0, 0, 0], [1, 2, 1, 0]]])


def test_the_last_token_is_never_shared(word_model, ids):
    """Two requests with the same subject: all but its last token are shared."""
    packed = pack_prompts(word_model, [BOB, BOB], (("{}",),), "mean")
    np.testing.assert_array_equal(packed.n_shared_C, [1])
    np.testing.assert_array_equal(packed.shared_CO, [padded(ids("Bob"))])
    np.testing.assert_array_equal(packed.token_GBT, [[padded(ids("Lee Lee"))]])


def test_weights_of_the_poolings(word_model):
    """A template in two groups counts twice; the bare prompt counts where it is a template."""
    groups = (("{}",), ("So. {}", "Hear. {}"))
    group_means = pack_prompts(word_model, [ANN], groups, "group_means")
    np.testing.assert_allclose(group_means.weight_C, [1 / 2, 1 / 4, 1 / 4])
    mean = pack_prompts(word_model, [ANN], groups, "mean")
    np.testing.assert_allclose(mean.weight_C, [1 / 3, 1 / 3, 1 / 3])
    twice = pack_prompts(word_model, [ANN], (("{}",), ("{}", "So. {}")), "group_means")
    np.testing.assert_allclose(twice.weight_C, [3 / 4, 1 / 4])


def test_a_bare_prompt_that_is_no_template_is_packed_with_weight_0(word_model):
    packed = pack_prompts(word_model, [ANN], (("So. {}",),), "mean")
    np.testing.assert_array_equal(packed.weight_C, [1, 0])
    assert packed.bare == 1
    assert packed.place_GQ4[0, :, 2].tolist() == [0, 1]


def test_many_requests_get_wide_rows(word_model, monkeypatch):
    few = pack_prompts(word_model, [ANN, BOB], GROUPS, "mean")
    monkeypatch.setattr(packed_prompts, "MANY_REQUESTS", 2)
    many = pack_prompts(word_model, [ANN, BOB], GROUPS, "mean")
    assert few.token_GBT.shape[2] == 8
    assert many.token_GBT.shape[2] == packed_prompts.KEY_ROW_TOKENS


def test_batches_of_one_shape_hold_every_request_once(word_model, monkeypatch):
    monkeypatch.setattr(packed_prompts, "ROWS_PER_BATCH", 2)
    long = jaxedit.Request("So So So So {} sings", "Bob Lee", "Rome")
    requests = [ANN, long, BOB, long, long]
    packed = pack_prompts(word_model, requests, (("{}", "So. {}", "Hear. {}"),), "mean")
    G, B, T = packed.token_GBT.shape
    assert G > 1
    assert B <= 2
    found = []
    for g in range(G):
        real_Q4 = packed.place_GQ4[g][packed.place_GQ4[g, :, 3] >= 0]
        for row, column, template, request in real_Q4:
            assert packed.template_GB[g, row] == template
            assert packed.segment_GBT[g, row, column] > 0
            # the last token of its segment
            assert column == T - 1 or (
                packed.segment_GBT[g, row, column + 1] != packed.segment_GBT[g, row, column]
            )
            found.append((template, request))
    assert sorted(found) == [(c, i) for c in range(3) for i in range(5)]


def test_a_subject_longer_than_the_context(word_model):
    long = jaxedit.Request("{} lives in", "Ann " * 256 + "Lee", "Paris")
    with pytest.raises(ValueError, match=r"the request .* in its templates has 257 tokens, more"):
        pack_prompts(word_model, [ANN, long], (("{}",),), "mean")
