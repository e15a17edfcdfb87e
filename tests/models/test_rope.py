"""Rotary positions against float64 NumPy: rotations as complex numbers, and the scalings."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.models.rope import Rope, inverse_frequencies, rotate, scaling_factors

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}


def rotated(rope: Rope, x_BTNH: np.ndarray, position_BT: np.ndarray) -> np.ndarray:
    """Rotate pairs as complex numbers: x_i + j x_k becomes (x_i + j x_k) exp(j angle)."""
    n_pairs = (rope.dims + 1) // 2
    first = np.arange(n_pairs) * (2 if rope.interleaved else 1)
    second = first + (1 if rope.interleaved else n_pairs)
    frequency = rope.theta ** (-2 * np.arange(n_pairs) / rope.dims)
    angle = position_BT[..., None, None] * frequency / np.array(rope.factors or 1.0)
    pairs = (x_BTNH[..., first] + 1j * x_BTNH[..., second]) * np.exp(1j * angle)
    out_BTNH = x_BTNH.copy()
    out_BTNH[..., first], out_BTNH[..., second] = pairs.real, pairs.imag
    return out_BTNH


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("dims", "factors"), [(8, None), (4, None), (3, None), (4, (2.0, 1.0))], ids=str
)
def test_rotation_is_that_of_complex_numbers(dims, factors, interleaved):
    rope = Rope(theta=50.0, dims=dims, interleaved=interleaved, factors=factors)
    x_BTNH = np.random.default_rng(0).standard_normal((2, 5, 3, 8))
    position_BT = np.array([[0, 1, 2, 3, 40], [7, 6, 5, 4, 3]])
    found = rotate(rope, jnp.asarray(x_BTNH, jnp.float32), jnp.asarray(position_BT))
    np.testing.assert_allclose(found, rotated(rope, x_BTNH, position_BT), atol=1e-5)


def test_products_of_queries_and_keys_depend_on_their_distance_only():
    rope = Rope(theta=100.0, dims=8)
    q_H, k_H = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    products = []
    for shift in (0, 3, 11):
        at = jnp.array([[shift, shift + 2]])
        q, k = rotate(rope, jnp.stack([q_H, k_H])[None, :, None], at)[0, :, 0]
        products.append(float(q @ k))
    np.testing.assert_allclose(products, products[0], atol=1e-5)
    assert abs(products[0] - float(q_H @ k_H)) > 0.1


def test_frequencies_fall_from_one_to_that_of_the_last_pair():
    found = inverse_frequencies(10000.0, 4)
    np.testing.assert_allclose(found, [1.0, 0.01])
    assert len(inverse_frequencies(10000.0, 5)) == 3


def test_default_scaling_is_none():
    assert scaling_factors(10000.0, 8, {}) is None
    assert scaling_factors(10000.0, 8, {"rope_type": "default"}) is None


def test_linear_scaling_divides_all_frequencies_alike():
    assert scaling_factors(10000.0, 8, {"type": "linear", "factor": 3}) == (3.0,) * 4


def test_llama3_scaling_stretches_long_wavelengths_and_keeps_short_ones():
    """As transformers' `_compute_llama3_parameters`, pair by pair."""
    found = scaling_factors(30.0, 8, LLAMA3)
    assert found is not None
    for factor, frequency in zip(found, 30.0 ** (-np.arange(0, 8, 2) / 8), strict=True):
        wavelength = 2 * np.pi / frequency
        smooth = (40 / wavelength - 1.0) / (4.0 - 1.0)
        blended = (1 - smooth) * frequency / 8.0 + smooth * frequency
        expected = frequency / 8.0 if wavelength > 40 else blended
        expected = frequency if wavelength < 10 else expected
        assert frequency / factor == pytest.approx(expected, rel=1e-12)
    assert found[0] == 1.0


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarn"}, "'yarn' is not supported; supported: default, linear, llama3"),
        ({"rope_type": "linear"}, r"'linear' has \['factor'\], got \[\]"),
        ({"factor": 2.0}, r"'default' has nothing else, got \['factor'\]"),
    ],
)
def test_scalings_that_are_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        scaling_factors(10000.0, 8, scaling)
