"""Rotary positions against float64 NumPy: rotations as complex numbers, and the scalings."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxedit.models.rope import Rope, inverse_frequencies, rotate, rotation_at
from jaxedit.models.rope_config import scaled_rope

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
    x, at = jnp.asarray(x_BTNH, jnp.float32), jnp.asarray(position_BT)
    found = rotate(rotation_at([rope], 0), x, at)
    np.testing.assert_allclose(found, rotated(rope, x_BTNH, position_BT), atol=1e-5)


def test_products_of_queries_and_keys_depend_on_their_distance_only():
    rotation = rotation_at([Rope(theta=100.0, dims=8)], 0)
    q_H, k_H = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    products = []
    for shift in (0, 3, 11):
        at = jnp.array([[shift, shift + 2]])
        q, k = rotate(rotation, jnp.stack([q_H, k_H])[None, :, None], at)[0, :, 0]
        products.append(float(q @ k))
    np.testing.assert_allclose(products, products[0], atol=1e-5)
    assert abs(products[0] - float(q_H @ k_H)) > 0.1


def test_frequencies_fall_from_one_to_that_of_the_last_pair():
    found = inverse_frequencies(10000.0, 4)
    np.testing.assert_allclose(found, [1.0, 0.01])
    assert len(inverse_frequencies(10000.0, 5)) == 3


def test_default_scaling_is_none():
    assert scaled_rope(10000.0, 8, 64, {}) == Rope(10000.0, 8)
    assert scaled_rope(10000.0, 8, 64, {"rope_type": "default"}) == Rope(10000.0, 8)


def test_linear_scaling_divides_all_frequencies_alike():
    assert scaled_rope(10000.0, 8, 64, {"type": "linear", "factor": 3}).factors == (3.0,) * 4


def test_llama3_scaling_stretches_long_wavelengths_and_keeps_short_ones():
    """As transformers' `_compute_llama3_parameters`, pair by pair."""
    found = scaled_rope(30.0, 8, 64, LLAMA3).factors
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
    "more",
    [
        {},
        dict(attention_factor=1.3),
        dict(beta_fast=4.0, beta_slow=0.5, truncate=False),
        dict(mscale=1.5, mscale_all_dim=0.7),
        dict(original_max_position_embeddings=None),
    ],
    ids=str,
)
def test_yarn_is_that_of_transformers(more):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40, **more}
    scaling = {name: value for name, value in scaling.items() if value is not None}
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=160,
        rope_parameters={**scaling, "rope_theta": 30.0},
    )
    inverse, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config)
    rope = scaled_rope(30.0, 16, 160, scaling)
    np.testing.assert_allclose(rope.frequency, inverse.numpy(), rtol=1e-6)
    assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-12)
    assert rope.longest is None


@pytest.mark.parametrize(
    "more", [{}, dict(factor=3.0), dict(attention_factor=1.4), dict(factor=0.5)], ids=str
)
def test_longrope_is_that_of_transformers_up_to_the_trained_length(more):
    factors = {"short_factor": [1.0, 1.1, 1.5, 2.0], "long_factor": [4.0, 5.0, 6.0, 7.0]}
    scaling = {"rope_type": "longrope", **factors, **more}
    config = transformers.Phi3Config(
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=160,
        original_max_position_embeddings=40,
        pad_token_id=0,
        rope_parameters={**scaling, "rope_theta": 30.0},
    )
    inverse, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config)
    rope = scaled_rope(30.0, 8, 160, {**scaling, "original_max_position_embeddings": 40})
    np.testing.assert_allclose(rope.frequency, inverse.numpy(), rtol=1e-6)
    assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-12)
    assert rope.longest == 40


def test_longrope_with_one_set_of_factors_has_no_end():
    factors = {"short_factor": [2, 2, 3, 3], "long_factor": [2, 2, 3, 3]}
    assert scaled_rope(30.0, 8, 160, {"rope_type": "longrope", **factors}).longest is None


def test_layers_differ_by_frequency_and_factor():
    ropes = [Rope(50.0, 4), None, Rope(50.0, 4, factors=(2.0, 3.0), attention_factor=1.5)]
    x_BTNH = np.random.default_rng(0).standard_normal((1, 5, 2, 8))
    position_BT = np.array([[0, 1, 2, 3, 40]])
    for layer, rope in enumerate(ropes):
        rotation = rotation_at(ropes, jnp.int32(layer))
        found = rotate(rotation, jnp.asarray(x_BTNH, jnp.float32), jnp.asarray(position_BT))
        expected = x_BTNH
        if rope is not None:
            expected = rotated(rope, x_BTNH, position_BT)
            expected[..., :4] *= rope.attention_factor
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "ntk"}, "'ntk' is not supported; supported: default, linear, dynamic"),
        ({"rope_type": "linear"}, r"'linear' has \['factor'\], got \[\]"),
        ({"factor": 2.0}, r"'default' has nothing else, got \['factor'\]"),
        ({"rope_type": "yarn", "factor": 2.0, "beta": 1}, r"'yarn' has .* and maybe .*'truncate'"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4},
            "1 numbers in short_factor; expected 4",
        ),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [0, 1, 1, 1]},
            "long_factor; expected 4, finite and above 0",
        ),
    ],
)
def test_scalings_that_are_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        scaled_rope(10000.0, 8, 64, scaling)
