"""What the decoder's modules compute with: products, activations, norms, and the edits' term."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Float32 weights mean float32 products: without this a TPU would use bfloat16 passes.
PRECISION = lax.Precision.HIGHEST


class PerRowEdits(NamedTuple):
    """Low-rank changes of a weight that differ from row to row of a batch; `slot_L` as in
    `Overlay`.
    """

    u_EBFR: jax.Array
    v_EBRD: jax.Array
    slot_L: jax.Array


class Overlay(NamedTuple):
    """The sum of the kept edits: for each edited weight a float32 `delta_EFD` and `slot_L` (-1:
    layer not edited).

    `rows` holds, by weight, edits that only single rows of the batch at hand have besides.
    """

    delta: dict[str, jax.Array]
    slot: dict[str, jax.Array]
    rows: dict[str, PerRowEdits] = {}  # noqa: RUF012 (never written)


def linear(equation: str, x, w, b) -> jax.Array:
    """x w + b in the weight's precision, accumulated and returned in float32."""
    w = jnp.asarray(w)
    out = jnp.einsum(
        equation, x.astype(w.dtype), w, precision=PRECISION, preferred_element_type=jnp.float32
    )
    return out if b is None else out + jnp.asarray(b).astype(jnp.float32)


def activation(name: str, x) -> jax.Array:
    """The activation by the name a DecoderConfig gives it."""
    if name == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=name == "gelu_tanh")


def rms_norm(x, scale, offset: float, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, times scale + offset."""
    scale = jnp.asarray(scale).astype(jnp.float32)
    if offset:
        scale += offset
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * scale


def layer_norm(x, scale, bias, eps: float) -> jax.Array:
    """Layer norm over the last axis."""
    centred = x - jnp.mean(x, -1, keepdims=True)
    normed = centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)
    return normed * jnp.asarray(scale).astype(jnp.float32) + jnp.asarray(bias).astype(jnp.float32)


def add_delta(overlay: Overlay, name: str, layer, x_BTF, out_BTD) -> jax.Array:
    """Adds x @ delta of an edited layer in float32; unedited layers and models pay nothing."""
    x_BTF = x_BTF.astype(jnp.float32)
    if name in overlay.delta:
        slot = overlay.slot[name][layer]

        def edited(out):
            delta_FD = lax.dynamic_index_in_dim(overlay.delta[name], slot, 0, keepdims=False)
            return out + jnp.einsum("BTF,FD->BTD", x_BTF, delta_FD, precision=PRECISION)

        out_BTD = lax.cond(slot >= 0, edited, lambda out: out, out_BTD)
    if name in overlay.rows:
        rows = overlay.rows[name]
        at = rows.slot_L[layer]

        def edited_by_row(out):
            u_BFR, v_BRD = (
                lax.dynamic_index_in_dim(array, at, 0, keepdims=False) for array in rows[:2]
            )
            x_BTR = jnp.einsum("BTF,BFR->BTR", x_BTF, u_BFR, precision=PRECISION)
            return out + jnp.einsum("BTR,BRD->BTD", x_BTR, v_BRD, precision=PRECISION)

        out_BTD = lax.cond(at >= 0, edited_by_row, lambda out: out, out_BTD)
    return out_BTD
