"""Factors of a sum of edits, against NumPy's SVD of the sum written out."""

import numpy as np
import pytest
from reference.distance import relative

from jaxedit import Dense, Edit, LowRank
from jaxedit.exports.low_rank import factors_by_layer

F, D = 40, 24


@pytest.fixture
def random():
    return np.random.default_rng(0)


def low_rank(random, rank: int, layer: int = 1) -> LowRank:
    u_FR = random.standard_normal((F, rank)).astype(np.float32)
    return LowRank("mlp/w_down", layer, u_FR, random.standard_normal((rank, D), np.float32))


def written_out(edits: list[Edit], layer: int = 1) -> np.ndarray:
    """The sum of a layer's changes, float64."""
    sum_FD = np.zeros((F, D))
    for edit in edits:
        for delta in edit.deltas:
            if delta.layer == layer and isinstance(delta, Dense):
                sum_FD += delta.delta_FD
            elif delta.layer == layer:
                sum_FD += delta.u_FR.astype(np.float64) @ delta.v_RD
    return sum_FD


@pytest.mark.parametrize("max_rank", [1, 5, 11])
def test_a_cut_product_is_the_closest_of_its_rank(random, max_rank):
    """Of twelve factors, by way of the small core."""
    edits = [Edit((low_rank(random, rank),)) for rank in (3, 4, 5)]
    exact_FD = written_out(edits)
    (factors,) = factors_by_layer(edits, max_rank, "float32")
    u, singular, v = np.linalg.svd(exact_FD, full_matrices=False)
    closest = (u[:, :max_rank] * singular[:max_rank]) @ v[:max_rank]
    assert factors.u_FR.shape == (F, max_rank)
    assert relative(factors.u_FR @ factors.v_RD, closest) < 1e-6
    missed = np.linalg.norm(singular[max_rank:]) / np.linalg.norm(singular)
    assert factors.error == pytest.approx(missed, rel=1e-5)


@pytest.mark.parametrize("dense_first", [True, False])
def test_dense_and_low_rank_edits_of_a_layer_are_summed(random, dense_first):
    dense = Edit((Dense("mlp/w_down", 1, random.standard_normal((F, D), np.float32)),))
    edits = [dense, Edit((low_rank(random, 2),))][:: 1 if dense_first else -1]
    (factors,) = factors_by_layer(edits, 512, "float32")
    assert factors.rank == D
    assert relative(factors.u_FR @ factors.v_RD, written_out(edits)) < 1e-6
    assert factors.error < 1e-6


def test_more_factors_than_the_matrix_has_ranks_become_fewer(random):
    edits = [Edit((low_rank(random, 7),)) for _ in range(5)]
    (factors,) = factors_by_layer(edits, 512, "float32")
    assert factors.rank == D
    assert relative(factors.u_FR @ factors.v_RD, written_out(edits)) < 1e-6


def test_a_dense_edit_of_low_rank_gets_that_rank(random):
    product = low_rank(random, 3)
    edits = [Edit((Dense("mlp/w_down", 1, product.u_FR.astype(np.float64) @ product.v_RD),))]
    (factors,) = factors_by_layer(edits, 512, "float32")
    assert factors.rank == 3


def test_layers_are_apart_in_order_and_of_one_rank(random):
    edits = [
        Edit((low_rank(random, 3, layer=4), low_rank(random, 1, layer=2))),
        Edit((low_rank(random, 2, layer=4),)),
    ]
    found = factors_by_layer(edits, 512, "float32")
    assert [(factors.layer, factors.rank) for factors in found] == [(2, 1), (4, 5)]
    for factors in found:
        assert (factors.u_FR.shape, factors.v_RD.shape) == ((F, 5), (5, D))
        exact_FD = written_out(edits, factors.layer)
        assert relative(factors.u_FR @ factors.v_RD, exact_FD) < 1e-6


def test_factors_of_unlike_size_survive_float16(random):
    """As those of MEMIT are: by themselves they would underflow and overflow."""
    product = low_rank(random, 2)
    edits = [Edit((product._replace(u_FR=product.u_FR * 1e-7, v_RD=product.v_RD * 1e5),))]
    (factors,) = factors_by_layer(edits, 512, "float16")
    assert factors.u_FR.dtype == np.float16
    read_back = factors.u_FR.astype(np.float64) @ factors.v_RD.astype(np.float64)
    assert relative(read_back, written_out(edits)) == pytest.approx(factors.error, rel=1e-6)
    assert factors.error < 1e-3


def test_a_change_of_zero_has_factors_and_no_error(random):
    zero = Dense("mlp/w_down", 1, np.zeros((F, D), np.float32))
    nothing = low_rank(random, 2)._replace(v_RD=np.zeros((2, D), np.float32))
    for delta in (zero, nothing):
        (factors,) = factors_by_layer([Edit((delta,))], 512, "float32")
        assert factors.rank >= 1
        assert factors.error == 0
        assert not (factors.u_FR @ factors.v_RD).any()


def test_what_is_not_finite_is_refused(random):
    product = low_rank(random, 2)
    product.u_FR[3, 1] = np.inf
    with pytest.raises(ValueError, match=r"an edit of layer 1 holds numbers that are not finite"):
        factors_by_layer([Edit((product,))], 512, "float32")
