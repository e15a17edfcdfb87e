"""Scaling an edit: its change is multiplied, whether low-rank or dense; its memory is dropped."""

import numpy as np
import pytest

from jaxedit import Dense, Edit, LowRank
from jaxedit.edits.edit import EDITED_WEIGHT, scale_delta, scale_edit, to_dense


@pytest.fixture
def edit():
    rng = np.random.default_rng(0)
    u_FR, v_RD, delta_FD = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((6, 2), (2, 4), (6, 4))
    )
    deltas = (LowRank(EDITED_WEIGHT, 2, u_FR, v_RD), Dense(EDITED_WEIGHT, 3, delta_FD))
    return Edit(deltas, memory={"keys/2": np.ones(3)}, anchor="bos")


def test_every_delta_is_multiplied(edit):
    for before, after in zip(edit.deltas, scale_edit(edit, -0.25).deltas, strict=True):
        assert type(after) is type(before)
        assert after[:2] == before[:2]
        np.testing.assert_allclose(to_dense(after), -0.25 * to_dense(before), rtol=1e-6, atol=1e-7)


def test_a_delta_is_scaled_as_in_its_edit(edit):
    for delta, scaled in zip(edit.deltas, scale_edit(edit, 3.0).deltas, strict=True):
        np.testing.assert_array_equal(to_dense(scale_delta(delta, 3.0)), to_dense(scaled))


def test_the_memory_is_that_of_the_whole_edit_only(edit):
    scaled = scale_edit(edit, 0.5)
    assert not scaled.memory
    assert edit.memory
    assert scaled.anchor == "bos"
