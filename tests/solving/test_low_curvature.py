"""CrispEdit's projection against NumPy in float64."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from reference.low_curvature import project

from jaxedit.solving.low_curvature import (
    decompose,
    low_curvature_mask,
    project_to_low_curvature,
)

F, D = 12, 7


@pytest.fixture(scope="module")
def moments():
    """C and B of two layers, with eigenvalues over four decades."""
    rng = np.random.default_rng(0)

    def moment(n: int) -> np.ndarray:
        basis, _ = np.linalg.qr(rng.standard_normal((n, n)))
        return (basis * np.logspace(0, -4, n)) @ basis.T

    return [(moment(F), moment(D)) for _ in range(2)]


@pytest.mark.parametrize("energy_threshold", [0.5, 0.9, 0.999, 1.0])
def test_gradients_are_projected(moments, energy_threshold):
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    curvature = decompose(mesh, moments, energy_threshold)
    gradient_EFD = np.random.default_rng(1).standard_normal((2, F, D)).astype(np.float32)
    transformation = project_to_low_curvature({"w": curvature})
    found, _ = transformation.update({"w": gradient_EFD}, transformation.init({"w": gradient_EFD}))
    expected_EFD = [
        project(gradient_FD, c_FF, b_DD, energy_threshold)
        for gradient_FD, (c_FF, b_DD) in zip(gradient_EFD, moments, strict=True)
    ]
    np.testing.assert_allclose(found["w"], expected_EFD, atol=1e-5)
    # twice is once
    again, _ = transformation.update(found, transformation.init(found))
    np.testing.assert_allclose(again["w"], found["w"], atol=1e-5)


def test_the_largest_curvatures_hold_the_share():
    """Of 8, 4, 2, 1 (sum 15): 8 holds over a half, 8 and 4 hold 80 %, three hold 93 %."""
    s_M, s_D = np.array([4.0, 1.0]), np.array([2.0, 1.0])  # products 8, 4, 2, 1
    for share, kept in ((0.5, [4, 2, 1]), (0.8, [2, 1]), (0.9, [1]), (1.0, [])):
        mask_MD = low_curvature_mask(s_M, s_D, share)
        products_MD = s_M[:, None] * s_D
        assert sorted(products_MD[mask_MD], reverse=True) == kept
