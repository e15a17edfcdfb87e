"""The decoder's operations against torch and float64 NumPy, and the edits' term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference.distance import relative

from jaxedit.models.norms import layer_norm, rms_norm
from jaxedit.models.ops import (
    Overlay,
    PerRowEdits,
    activation,
    add_delta,
    linear,
    product_in_parts,
    softcap,
)

WEIGHT = "mlp/w_down"
B, T, F, D, R = 2, 3, 5, 4, 2


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_soft_cap_bounds_what_is_large_and_leaves_what_is_small():
    x = np.array([-100.0, -0.01, 0.0, 3.0, 40.0], np.float32)
    np.testing.assert_allclose(softcap(x, 5.0), 5 * np.tanh(x / 5), rtol=1e-6)
    assert softcap(x, None) is x


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_activations_are_those_of_torch(name, theirs):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(activation(name, x), theirs(torch.tensor(x)), atol=1e-6)


def test_the_two_forms_of_gelu_differ():
    x = np.linspace(-3, 3, 11, dtype=np.float32)
    assert np.abs(activation("gelu", x) - activation("gelu_tanh", x)).max() > 1e-4


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_is_its_formula(offset):
    x_BTD, scale_D = 3 * normal(B, T, D), normal(D, seed=1)
    x = x_BTD.astype(np.float64)
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.1) * (scale_D + offset)
    np.testing.assert_allclose(rms_norm(x_BTD, scale_D, offset, 0.1), expected, rtol=1e-5)


def test_layer_norm_is_that_of_torch():
    x_BTD, scale_D, bias_D = 3 * normal(B, T, D) + 2, normal(D, seed=1), normal(D, seed=2)
    theirs = torch.nn.functional.layer_norm(
        torch.tensor(x_BTD), (D,), torch.tensor(scale_D), torch.tensor(bias_D), eps=0.1
    )
    np.testing.assert_allclose(layer_norm(x_BTD, scale_D, bias_D, 0.1), theirs, atol=1e-5)


def test_linear_adds_up_in_float32_whatever_the_weights_dtype():
    x_BTF, w_FD, b_D = normal(B, T, F), normal(F, D, seed=1), normal(D, seed=2)
    exact = x_BTF.astype(np.float64) @ w_FD + b_D
    found = linear("BTF,FD->BTD", jnp.asarray(x_BTF), w_FD, b_D)
    np.testing.assert_allclose(found, exact, rtol=1e-5)

    x_bf16, w_bf16 = (jnp.asarray(a, jnp.bfloat16) for a in (x_BTF, w_FD))
    found = linear("BTF,FD->BTD", jnp.asarray(x_BTF), w_bf16, None)
    assert found.dtype == jnp.float32
    exact = np.asarray(x_bf16, np.float64) @ np.asarray(w_bf16, np.float64)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.fixture(scope="module")
def overlay() -> Overlay:
    """Make a change of layers 1 and 3 out of four."""
    slot_L = jnp.array([-1, 0, -1, 1])
    return Overlay({WEIGHT: jnp.asarray(normal(2, F, D, seed=3))}, {WEIGHT: slot_L})


@pytest.fixture(scope="module")
def rows() -> PerRowEdits:
    """Make a change of layer 2 that differs between the rows."""
    u_EBFR, v_EBRD = normal(1, B, F, R, seed=4), normal(1, B, R, D, seed=5)
    return PerRowEdits(jnp.asarray(u_EBFR), jnp.asarray(v_EBRD), jnp.array([-1, -1, 0, -1]))


@pytest.mark.parametrize("layer", range(4))
def test_edited_layers_get_their_term_and_no_other(overlay, layer):
    x_BTF, out_BTD = normal(B, T, F), normal(B, T, D, seed=1)
    found = jax.jit(add_delta, static_argnums=1)(overlay, WEIGHT, layer, x_BTF, out_BTD)
    slot = int(overlay.slot[WEIGHT][layer])
    if slot < 0:
        np.testing.assert_array_equal(found, out_BTD)
    else:
        expected = out_BTD + x_BTF.astype(np.float64) @ np.asarray(overlay.delta[WEIGHT][slot])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_rows_have_edits_of_their_own(overlay, rows):
    x_BTF, out_BTD = normal(B, T, F), normal(B, T, D, seed=1)
    edited = overlay._replace(rows={WEIGHT: rows})
    found = add_delta(edited, WEIGHT, 2, jnp.asarray(x_BTF), jnp.asarray(out_BTD))
    for b in range(B):
        change_FD = np.asarray(rows.u_EBFR[0, b], np.float64) @ np.asarray(rows.v_EBRD[0, b])
        expected_TD = out_BTD[b] + x_BTF[b] @ change_FD
        np.testing.assert_allclose(found[b], expected_TD, rtol=1e-5, atol=1e-6)
    same = add_delta(edited, WEIGHT, 1, jnp.asarray(x_BTF), jnp.asarray(out_BTD))
    without = add_delta(overlay, WEIGHT, 1, jnp.asarray(x_BTF), jnp.asarray(out_BTD))
    np.testing.assert_array_equal(same, without)


def test_a_weight_without_edits_is_left_alone(overlay):
    x_BTF, out_BTD = jnp.asarray(normal(B, T, F)), jnp.asarray(normal(B, T, D, seed=1))
    assert add_delta(overlay, "mlp/w_up", 1, x_BTF, out_BTD) is out_BTD


def test_an_edit_of_bfloat16_activations_is_added_in_float32(overlay):
    x_BTF = jnp.asarray(normal(B, T, F), jnp.bfloat16)
    out_BTD = jnp.asarray(normal(B, T, D, seed=1))
    found = add_delta(overlay, WEIGHT, 1, x_BTF, out_BTD)
    assert found.dtype == jnp.float32
    exact = np.asarray(out_BTD, np.float64)
    exact = exact + np.asarray(x_BTF, np.float64) @ np.asarray(overlay.delta[WEIGHT][0])
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


def test_parts_of_an_edit_lose_little_beside_bfloat16_weights():
    """A TPU's products: what is read is rounded as for the weight, the edit to 16 bits."""
    x_BTF, delta_FD = normal(B, T, F), normal(F, D, seed=1)
    found = jax.jit(product_in_parts, static_argnums=0)("BTF,FD->BTD", x_BTF, delta_FD)
    rounded_BTF = np.asarray(jnp.asarray(x_BTF, jnp.bfloat16), np.float64)
    exact = rounded_BTF @ delta_FD.astype(np.float64)
    assert relative(found, exact) < 2**-16
    in_one = rounded_BTF @ np.asarray(jnp.asarray(delta_FD, jnp.bfloat16), np.float64)
    assert relative(in_one, exact) > 2**-11
