"""The least-change update against a float64 evaluation of its formulas, with hard matrices, history
and large batches.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit import Dense, LowRank
from jaxedit.edits.edit import to_dense
from jaxedit.solving.solve import (
    KeyRegulariser,
    add_past_keys,
    inverse_cholesky,
    least_change,
    solve,
    solve_primal,
)

WEIGHT = "mlp/w_down"


def conditioned(F: int, condition: float, seed: int = 0) -> np.ndarray:
    """A symmetric positive definite matrix with eigenvalues from 1 / condition to 1."""
    rng = np.random.default_rng(seed)
    q_FF, _ = np.linalg.qr(rng.standard_normal((F, F)))
    return (q_FF * np.geomspace(1 / condition, 1, F)) @ q_FF.T


def draw(*shapes, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def published(metric_FF, key_FN, value_ND, g: float) -> np.ndarray:
    """(g M + K K^T)^-1 K R: the form that the released code solves."""
    key, value = key_FN.astype(np.float64), value_ND.astype(np.float64)
    return np.linalg.solve(g * metric_FF + key @ key.T, key @ value)


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
def test_equality_constraint(condition):
    """u = M^-1 K_left, v = (K_right^T u)^-1 V, with other keys on the right, as ROME has them."""
    moment_FF = conditioned(96, condition)
    left, value, noise = draw((96, 1), (1, 24), (96, 1))
    right = left + 0.3 * noise
    found = solve(KeyRegulariser(inverse_cholesky(moment_FF)), left, right, value, 0.0)
    u = np.linalg.solve(moment_FF, left.astype(np.float64))
    wanted_FD = u @ np.linalg.solve(right.T @ u, value.astype(np.float64))
    assert relative(np.asarray(found.u_FR) @ found.v_RD, wanted_FD) < 1e-5
    np.testing.assert_allclose(
        right.T @ np.asarray(found.u_FR) @ found.v_RD, value, rtol=1e-4, atol=1e-5
    )
    assert np.linalg.norm(np.asarray(found.u_FR)) == pytest.approx(1, rel=1e-6)
    assert float(found.gram_RR[0, 0]) == pytest.approx(
        (right.T @ u).item() / np.linalg.norm(u), rel=1e-4
    )
    assert found.residual < 1e-5


def test_without_a_matrix_the_left_key_is_the_direction():
    left, right, value = draw((8, 1), (8, 1), (1, 4), seed=2)
    found = solve(KeyRegulariser(), left, right, value, 0.0)
    np.testing.assert_allclose(
        np.asarray(found.u_FR) @ found.v_RD, left @ value / (right.T @ left), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
@pytest.mark.parametrize("g", [1.0, 0.1])
def test_a_batch_is_the_published_expression(condition, g):
    moment_FF = conditioned(96, condition)
    key_FN, value_ND = draw((96, 7), (7, 24))
    key_FN *= 3
    delta, residual = least_change(
        KeyRegulariser(inverse_cholesky(moment_FF, 20.0, 0.5)),
        WEIGHT,
        2,
        key_FN,
        value_ND,
        g,
        "float64",
    )
    assert isinstance(delta, LowRank)
    assert (
        relative(to_dense(delta), published(20 * moment_FF + 0.5 * np.eye(96), key_FN, value_ND, g))
        < 1e-5
    )
    assert residual < 1e-5


@pytest.mark.parametrize("diagonal", [np.ones(96), np.linspace(1e-3, 5, 96)])
def test_a_diagonal_moment_needs_no_factorisation(diagonal):
    key_FN, value_ND = draw((96, 7), (7, 24))
    moment_FF = np.diag(diagonal)
    delta, _ = least_change(
        KeyRegulariser(inverse_cholesky(moment_FF, 20.0, 0.5)),
        WEIGHT,
        2,
        key_FN,
        value_ND,
        1.0,
        "float64",
    )
    assert (
        relative(
            to_dense(delta), published(20 * moment_FF + 0.5 * np.eye(96), key_FN, value_ND, 1.0)
        )
        < 1e-5
    )


def test_float32_solve_is_near():
    key_FN, value_ND = draw((96, 7), (7, 24))
    exact, _ = least_change(
        KeyRegulariser(inverse_cholesky(conditioned(96, 1e3))),
        WEIGHT,
        2,
        key_FN,
        value_ND,
        1.0,
        "float64",
    )
    near, _ = least_change(
        KeyRegulariser(inverse_cholesky(conditioned(96, 1e3))),
        WEIGHT,
        2,
        key_FN,
        value_ND,
        1.0,
        "float32",
    )
    assert 0 < relative(to_dense(near), to_dense(exact)) < 1e-3


@pytest.mark.parametrize("n_edits", [1, 3, 20])
@pytest.mark.parametrize("whitened", [True, False])
def test_history_counts_like_its_sum(n_edits, whitened):
    """Three keys an edit: kept as factors up to an eighth of the width, folded into the whitener
    beyond.
    """
    moment_FF = conditioned(96, 1e5) if whitened else np.eye(96)
    metric = (
        KeyRegulariser(jnp.asarray(inverse_cholesky(moment_FF))) if whitened else KeyRegulariser()
    )
    total_FF = moment_FF.copy()
    for i in range(n_edits):
        (past,) = draw((96, 3), seed=10 + i)
        metric = add_past_keys(metric, past)
        total_FF += past.astype(np.float64) @ past.T
    assert metric.n_history <= 96 / 8
    key_FN, value_ND = draw((96, 4), (4, 24), seed=3)
    delta, residual = least_change(metric, WEIGHT, 2, key_FN, value_ND, 1.0, "float64")
    assert relative(to_dense(delta), published(total_FF, key_FN, value_ND, 1.0)) < 1e-5
    assert residual < 1e-5


def test_history_in_a_subspace():
    """AlphaEdit's form: P (S + K K^T) + b I on the null space's coordinates."""
    moment_FF = conditioned(40, 1e4)
    value_F, vector_FF = np.linalg.eigh(moment_FF)
    free_FM = vector_FF[:, value_F < 1e-2]
    past_FR, key_FN, value_ND = draw((40, 2), (40, 3), (3, 8), seed=4)
    b, projector = 10.0, free_FM @ free_FM.T
    metric = add_past_keys(KeyRegulariser((free_FM.T / np.sqrt(b)).astype(np.float32)), past_FR)
    delta, _ = least_change(metric, WEIGHT, 2, key_FN, value_ND, 1.0, "float64")
    key, past = key_FN.astype(np.float64), past_FR.astype(np.float64)
    wanted_FD = np.linalg.solve(
        projector @ (key @ key.T + past @ past.T) + b * np.eye(40), projector @ key @ value_ND
    )
    assert relative(to_dense(delta), wanted_FD) < 1e-5


@pytest.mark.parametrize("n", [96, 130])
def test_as_many_keys_as_the_weight_is_wide_give_a_dense_update(n):
    moment_FF = conditioned(96, 1e4)
    key_FN, value_ND, past = draw((96, n), (n, 24), (96, 5), seed=5)
    metric = add_past_keys(KeyRegulariser(inverse_cholesky(moment_FF, 100.0)), past)
    total_FF = 100 * moment_FF + past.astype(np.float64) @ past.T
    delta, residual = least_change(metric, WEIGHT, 2, key_FN, value_ND, 1.0, "float64")
    assert isinstance(delta, Dense)
    assert relative(to_dense(delta), published(total_FF, key_FN, value_ND, 1.0)) < 1e-4
    assert residual < 1e-6


def test_both_forms_agree():
    key_FN, value_ND = draw((48, 12), (12, 8), seed=6)
    metric = KeyRegulariser(inverse_cholesky(conditioned(48, 1e4), 10.0))
    low, _ = least_change(metric, WEIGHT, 2, key_FN, value_ND, 1.0, "float64")
    dense, _ = solve_primal(metric, key_FN, value_ND, 1.0)
    assert relative(to_dense(low), dense) < 1e-5


def test_what_cannot_be_written_exactly():
    key_FN, value_ND = draw((8, 9), (9, 4))
    with pytest.raises(ValueError, match="9 keys of width 8 cannot all be met exactly"):
        least_change(KeyRegulariser(), WEIGHT, 0, key_FN, value_ND, 0.0, "float64")
    same = np.ones((8, 2), np.float32)
    with pytest.raises(ValueError, match="the 2 keys depend on each other"):
        least_change(KeyRegulariser(), WEIGHT, 0, same, value_ND[:2], 0.0, "float64")


@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_a_matrix_that_is_not_positive_definite(lowest):
    with pytest.raises(
        ValueError, match=r"second moment \(3 wide\) is not positive definite.*10 x F tokens"
    ):
        inverse_cholesky(np.diag([1.0, 0.5, lowest]))
