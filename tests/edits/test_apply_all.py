"""Several edits added at once are those added one after the other, bit for bit."""

import numpy as np
import pytest

from jaxedit import Dense, LowRank, apply, undo
from jaxedit.edits.apply import apply_all, replay_edits
from jaxedit.edits.edit import Edit, make_edit


@pytest.fixture(scope="module")
def edits(golden) -> list[Edit]:
    """Edits of one layer and of several, low-rank and dense, some of the same layer again."""
    model, rng = golden("gpt2"), np.random.default_rng(3)

    def low_rank(layer: int) -> LowRank:
        u_FR, v_RD = rng.standard_normal((192, 2)), rng.standard_normal((2, 48))
        return LowRank("mlp/w_down", layer, u_FR, v_RD)

    def dense(layer: int) -> Dense:
        return Dense("mlp/w_down", layer, 1e-3 * rng.standard_normal((192, 48)))

    changes = [[low_rank(3)], [low_rank(2), dense(3)], [dense(3)], [low_rank(1), low_rank(3)]]
    return [make_edit(model, each) for each in changes * 3]


def overlay(model) -> dict[tuple[str, int], bytes]:
    """The change of each layer that has one."""
    return {
        (weight, layer): np.asarray(model.overlay.delta[weight][slot]).tobytes()
        for weight, slot_L in model.overlay.slot.items()
        for layer, slot in enumerate(slot_L)
        if slot >= 0
    }


def test_the_sum_has_the_same_bits(golden, edits):
    expected = golden("gpt2")
    for edit in edits:
        expected = apply(expected, edit)
    found = apply_all(golden("gpt2"), edits)
    assert overlay(found) == overlay(expected)
    assert found.metadata.history == expected.metadata.history == tuple(edits)
    assert overlay(replay_edits(found, edits)) == overlay(expected)
    assert overlay(undo(found, edits[-1])) == overlay(apply_all(golden("gpt2"), edits[:-1])) != {}
    assert len(set(overlay(found).values())) == 3


def test_the_model_before_is_as_it_was(golden, edits):
    """Nothing that somebody else holds is written over, also by several deltas of one edit."""
    model = apply(golden("gpt2"), edits[1])
    before = overlay(model)
    apply_all(model, edits)
    apply(model, edits[3])
    assert overlay(model) == before
    assert overlay(apply_all(model, [])) == before
