"""The least-change update against a float64 evaluation of its formula, with hard matrices."""

import numpy as np
import pytest

from jaxedit.solving.solve import Metric, solve, whitener


def conditioned(F: int, condition: float, seed: int = 0) -> np.ndarray:
    """A symmetric positive definite matrix with eigenvalues from 1 / condition to 1."""
    rng = np.random.default_rng(seed)
    q_FF, _ = np.linalg.qr(rng.standard_normal((F, F)))
    return (q_FF * np.geomspace(1 / condition, 1, F)) @ q_FF.T


def expected(moment_FF, left_FR, right_FR, value_RD, g: float) -> np.ndarray:
    """u (K_right^T u + g I)^-1 V with u = M^-1 K_left, its columns of length one."""
    u_FR = np.linalg.solve(moment_FF, left_FR)
    u_FR /= np.linalg.norm(u_FR, axis=0)
    return u_FR @ np.linalg.solve(right_FR.T @ u_FR + g * np.eye(left_FR.shape[1]), value_RD)


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
def test_against_float64(condition):
    F, D = 96, 24
    moment_FF = conditioned(F, condition)
    rng = np.random.default_rng(1)
    left_F1, value_1D = rng.standard_normal((F, 1)).astype(np.float32), rng.standard_normal((1, D)).astype(np.float32)
    right_F1 = (left_F1 + 0.3 * rng.standard_normal((F, 1))).astype(np.float32)
    found = solve(Metric(whitener(moment_FF)), left_F1, right_F1, value_1D, 0.0)
    wanted_FD = expected(moment_FF, left_F1.astype(float), right_F1.astype(float), value_1D.astype(float), 0.0)
    difference = np.linalg.norm(np.asarray(found.u_FR) @ np.asarray(found.v_RD) - wanted_FD) / np.linalg.norm(wanted_FD)
    assert difference < 1e-5
    np.testing.assert_allclose(right_F1.T @ np.asarray(found.u_FR) @ np.asarray(found.v_RD), value_1D, rtol=1e-4, atol=1e-5)
    assert float(found.residual) < 1e-6


def test_without_a_matrix_the_left_key_is_the_direction():
    rng = np.random.default_rng(2)
    left_F1, right_F1, value_1D = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 1), (8, 1), (1, 4)))
    found = solve(Metric(), left_F1, right_F1, value_1D, 0.0)
    wanted_FD = expected(np.eye(8), left_F1.astype(float), right_F1.astype(float), value_1D.astype(float), 0.0)
    np.testing.assert_allclose(np.asarray(found.u_FR) @ np.asarray(found.v_RD), wanted_FD, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_a_matrix_that_is_not_positive_definite(lowest):
    moment_FF = np.diag([1.0, 0.5, lowest])
    with pytest.raises(ValueError, match=r"second moment \(3 wide\) is not positive definite.*10 x F tokens"):
        whitener(moment_FF)
