"""The least-change update against its formulas in float64: hard matrices, history, big batches."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference.distance import relative

from jaxedit import Dense, LowRank
from jaxedit.edits.edit import EDITED_WEIGHT, to_dense
from jaxedit.solving import solve as solving
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.solve import add_past_keys, solve, solve_primal
from jaxedit.solving.whiteners import inverse_cholesky, null_space

F = 96


def conditioned(width: int, condition: float, seed: int = 0) -> np.ndarray:
    """Make a symmetric positive definite matrix with eigenvalues from 1 / condition to 1."""
    rng = np.random.default_rng(seed)
    q_FF, _ = np.linalg.qr(rng.standard_normal((width, width)))
    return (q_FF * np.geomspace(1 / condition, 1, width)) @ q_FF.T


def draw(*shapes, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def published(m_FF, key_FR, value_RD, g: float) -> np.ndarray:
    """Evaluate (g M + K K^T)^-1 K R, the form that the released code solves."""
    key, value = key_FR.astype(np.float64), value_RD.astype(np.float64)
    return np.linalg.solve(g * m_FF + key @ key.T, key @ value)


def least_change(regulariser, key_FR, value_RD, g: float = 1.0, dtype: str = "float64"):
    return solving.least_change(regulariser, EDITED_WEIGHT, 2, key_FR, value_RD, g, dtype)


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
def test_equality_constraint(condition):
    """u = M^-1 K_left, v = (K_right^T u)^-1 V, with other keys on the right, as ROME has them."""
    moment_FF = conditioned(F, condition)
    left, value, noise = draw((F, 1), (1, 24), (F, 1))
    right = left + 0.3 * noise
    found = solve(KeyRegulariser(inverse_cholesky(moment_FF)), left, right, value, 0.0)
    u = np.linalg.solve(moment_FF, left.astype(np.float64))
    wanted_FD = u @ np.linalg.solve(right.T @ u, value.astype(np.float64))
    found_FD = np.asarray(found.u_FR) @ found.v_RD
    assert relative(found_FD, wanted_FD) < 1e-5
    np.testing.assert_allclose(
        right.T @ np.asarray(found.u_FR) @ found.v_RD, value, rtol=1e-4, atol=1e-5
    )
    assert np.linalg.norm(np.asarray(found.u_FR)) == pytest.approx(1, rel=1e-6)
    denominator = (right.T @ u).item() / np.linalg.norm(u)
    assert float(found.gram_RR[0, 0]) == pytest.approx(denominator, rel=1e-4)
    assert found.residual < 1e-5


def test_without_a_matrix_the_left_key_is_the_direction():
    left, right, value = draw((8, 1), (8, 1), (1, 4), seed=2)
    found = solve(KeyRegulariser(), left, right, value, 0.0)
    found_FD, wanted_FD = np.asarray(found.u_FR) @ found.v_RD, left @ value / (right.T @ left)
    np.testing.assert_allclose(found_FD, wanted_FD, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
@pytest.mark.parametrize("g", [1.0, 0.1])
def test_a_batch_is_the_published_expression(condition, g):
    moment_FF = conditioned(F, condition)
    key_FR, value_RD = draw((F, 7), (7, 24))
    key_FR *= 3
    regulariser = KeyRegulariser(inverse_cholesky(moment_FF, 20.0, 0.5))
    delta, residual = least_change(regulariser, key_FR, value_RD, g)
    assert isinstance(delta, LowRank)
    wanted_FD = published(20 * moment_FF + 0.5 * np.eye(F), key_FR, value_RD, g)
    assert relative(to_dense(delta), wanted_FD) < 1e-5
    assert residual < 1e-5


@pytest.mark.parametrize("diagonal", [np.ones(F), np.linspace(1e-3, 5, F)])
def test_a_diagonal_moment_needs_no_factorisation(diagonal):
    key_FR, value_RD = draw((F, 7), (7, 24))
    moment_FF = np.diag(diagonal)
    regulariser = KeyRegulariser(inverse_cholesky(moment_FF, 20.0, 0.5))
    delta, _ = least_change(regulariser, key_FR, value_RD)
    wanted_FD = published(20 * moment_FF + 0.5 * np.eye(F), key_FR, value_RD, 1.0)
    assert relative(to_dense(delta), wanted_FD) < 1e-5


def test_float32_solve_is_near():
    key_FR, value_RD = draw((F, 7), (7, 24))
    regulariser = KeyRegulariser(inverse_cholesky(conditioned(F, 1e3)))
    exact, _ = least_change(regulariser, key_FR, value_RD)
    near, _ = least_change(regulariser, key_FR, value_RD, dtype="float32")
    assert 0 < relative(to_dense(near), to_dense(exact)) < 1e-3


@pytest.mark.parametrize("n_edits", [1, 3, 20])
@pytest.mark.parametrize("whitened", [True, False])
def test_history_counts_like_its_sum(n_edits, whitened):
    """Three keys an edit: factors up to an eighth of the width, folded into the whitener beyond."""
    moment_FF, regulariser = np.eye(F), KeyRegulariser()
    if whitened:
        moment_FF = conditioned(F, 1e5)
        regulariser = KeyRegulariser(jnp.asarray(inverse_cholesky(moment_FF)))
    total_FF = moment_FF.copy()
    for i in range(n_edits):
        (past_FR,) = draw((F, 3), seed=10 + i)
        regulariser = add_past_keys(regulariser, past_FR)
        total_FF += past_FR.astype(np.float64) @ past_FR.T
    assert regulariser.n_history <= F / 8
    key_FR, value_RD = draw((F, 4), (4, 24), seed=3)
    delta, residual = least_change(regulariser, key_FR, value_RD)
    assert relative(to_dense(delta), published(total_FF, key_FR, value_RD, 1.0)) < 1e-5
    assert residual < 1e-5


def test_history_in_a_subspace():
    """AlphaEdit's form: P (S + K K^T) + b I on the null space's coordinates."""
    moment_FF = conditioned(40, 1e4)
    free_FM = null_space(moment_FF, 1e-2, layer=2)
    past_FR, key_FR, value_RD = draw((40, 2), (40, 3), (3, 8), seed=4)
    b, p_FF = 10.0, free_FM @ free_FM.T
    whitener_MF = (free_FM.T / np.sqrt(b)).astype(np.float32)
    regulariser = add_past_keys(KeyRegulariser(whitener_MF), past_FR)
    delta, _ = least_change(regulariser, key_FR, value_RD)
    key, past = key_FR.astype(np.float64), past_FR.astype(np.float64)
    system_FF = p_FF @ (key @ key.T + past @ past.T) + b * np.eye(40)
    assert relative(to_dense(delta), np.linalg.solve(system_FF, p_FF @ key @ value_RD)) < 1e-5


def test_the_null_space_is_spanned_by_the_eigenvectors_below_the_threshold():
    moment_FF = np.diag([3.0, 0.5, 2.0, 0.1])
    for threshold in (1.0, {7: 1.0, 8: 4.0}):
        u_FM = null_space(moment_FF, threshold, layer=7)
        np.testing.assert_allclose(u_FM @ u_FM.T, np.diag([0.0, 1.0, 0.0, 1.0]), atol=1e-12)


def test_a_null_space_of_nothing_is_refused():
    moment_FF = np.diag([3.0, 0.5])
    message = r"nullspace_threshold=0.4: no eigenvalue of layer 7's .* \(they go from 0.5 to 3\)"
    with pytest.raises(ValueError, match=message):
        null_space(moment_FF, 0.4, layer=7)
    with pytest.raises(ValueError, match=r"nullspace_threshold names layers \[8\], not layer 7"):
        null_space(moment_FF, {8: 1.0}, layer=7)


@pytest.mark.parametrize("n", [F, 130])
def test_as_many_keys_as_the_weight_is_wide_give_a_dense_update(n):
    moment_FF = conditioned(F, 1e4)
    key_FR, value_RD, past_FR = draw((F, n), (n, 24), (F, 5), seed=5)
    regulariser = add_past_keys(KeyRegulariser(inverse_cholesky(moment_FF, 100.0)), past_FR)
    total_FF = 100 * moment_FF + past_FR.astype(np.float64) @ past_FR.T
    delta, residual = least_change(regulariser, key_FR, value_RD)
    assert isinstance(delta, Dense)
    assert relative(to_dense(delta), published(total_FF, key_FR, value_RD, 1.0)) < 1e-4
    assert residual < 1e-6


def test_both_forms_agree():
    key_FR, value_RD = draw((48, 12), (12, 8), seed=6)
    regulariser = KeyRegulariser(inverse_cholesky(conditioned(48, 1e4), 10.0))
    low_rank, _ = least_change(regulariser, key_FR, value_RD)
    dense_FD, _ = solve_primal(regulariser, key_FR, value_RD, 1.0)
    assert relative(to_dense(low_rank), dense_FD) < 1e-5


def test_what_cannot_be_written_exactly():
    key_FR, value_RD = draw((8, 9), (9, 4))
    with pytest.raises(ValueError, match="9 keys of width 8 cannot all be met exactly"):
        least_change(KeyRegulariser(), key_FR, value_RD, 0.0)
    same_FR = np.ones((8, 2), np.float32)
    with pytest.raises(ValueError, match="the 2 keys depend on each other"):
        least_change(KeyRegulariser(), same_FR, value_RD[:2], 0.0)


@pytest.mark.parametrize("n_dead", [0, 1, 2, 4])
def test_a_matrix_with_neurons_that_never_fire(n_dead):
    """Two rows of zeros and one pair off the diagonal are four entries, as many as a diagonal's."""
    moment_FF = np.eye(4)
    moment_FF[2, 3] = moment_FF[3, 2] = 0.5
    moment_FF[:n_dead], moment_FF[:, :n_dead] = 0, 0
    whitener_FF = np.float64(inverse_cholesky(moment_FF, 2.0, 0.25))
    m_FF = 2 * moment_FF + 0.25 * np.eye(4)
    np.testing.assert_allclose(whitener_FF @ m_FF @ whitener_FF.T, np.eye(4), atol=1e-6)


@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_a_matrix_that_is_not_positive_definite(lowest):
    message = r"second moment \(3 wide\) is not positive definite.*10 x F tokens"
    with pytest.raises(ValueError, match=message):
        inverse_cholesky(np.diag([1.0, 0.5, lowest]))
