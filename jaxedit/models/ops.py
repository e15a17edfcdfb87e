"""The parameters and operations of which the decoder's modules are made, and the edits' term."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxedit import axes
from jaxedit.models.config import DecoderConfig

# Float32 weights mean float32 products: without this a TPU would use bfloat16 passes.
PRECISION = lax.Precision.HIGHEST


class PerRowEdits(NamedTuple):
    """Low-rank changes of a weight that differ from row to row of a batch.

    Attributes:
      u_EBFR: float32, each row's left factors by slot.
      v_EBRD: float32, each row's right factors.
      slot_L: as in `Overlay`.
    """

    u_EBFR: jax.Array
    v_EBRD: jax.Array
    slot_L: jax.Array


class Overlay(NamedTuple):
    """The sum of a model's edits, kept beside its base weights.

    Attributes:
      delta: edited weight -> float32 `delta_EFD`, the change of each edited layer.
      slot: edited weight -> integer `slot_L`, each layer's index in `delta_EFD`; -1: not edited.
      rows: edited weight -> edits that only single rows of the batch at hand have besides.
    """

    delta: dict[str, jax.Array]
    slot: dict[str, jax.Array]
    rows: dict[str, PerRowEdits] | None = None


def parameter(config: DecoderConfig, name: str) -> nnx.Param:
    """Make a parameter of the shape that `axes.PARAMETERS` spells; its values come later."""
    sizes = config.sizes()
    return nnx.Param(jnp.zeros(tuple(sizes[a] for a in axes.PARAMETERS[name])))


def linear(equation: str, x, w, b) -> jax.Array:
    """Compute x w + b in the weight's precision, accumulated and returned in float32."""
    w = jnp.asarray(w)
    out = jnp.einsum(
        equation, x.astype(w.dtype), w, precision=PRECISION, preferred_element_type=jnp.float32
    )
    return out if b is None else out + jnp.asarray(b).astype(jnp.float32)


def activation(name: str, x) -> jax.Array:
    """Apply the activation of a DecoderConfig: "gelu_tanh", "gelu" or "silu"."""
    if name == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=name == "gelu_tanh")


def rms_norm(x, scale, offset: float, eps: float) -> jax.Array:
    """Apply a root-mean-square norm over the last axis, times scale + offset."""
    scale = jnp.asarray(scale).astype(jnp.float32)
    if offset:
        scale += offset
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * scale


def layer_norm(x, scale, bias, eps: float) -> jax.Array:
    """Apply a layer norm over the last axis."""
    centred = x - jnp.mean(x, -1, keepdims=True)
    normed = centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)
    return normed * jnp.asarray(scale).astype(jnp.float32) + jnp.asarray(bias).astype(jnp.float32)


def add_delta(overlay: Overlay, name: str, layer, x_BTF, out_BTD) -> jax.Array:
    """Add the edits' term x @ delta of a layer to the weight's output, in float32.

    Layers without edits and models without edits pay nothing.

    Args:
      overlay: the edits.
      name: the weight, e.g. "mlp/w_down".
      layer: which, possibly traced.
      x_BTF: the weight's input.
      out_BTD: its output without the edits.
    """
    x_BTF = x_BTF.astype(jnp.float32)

    # The edits that the whole model has.
    if name in overlay.delta:
        slot = overlay.slot[name][layer]

        def add_edits(out_BTD):
            delta_FD = lax.dynamic_index_in_dim(overlay.delta[name], slot, 0, keepdims=False)
            return out_BTD + jnp.einsum("BTF,FD->BTD", x_BTF, delta_FD, precision=PRECISION)

        out_BTD = lax.cond(slot >= 0, add_edits, lambda out_BTD: out_BTD, out_BTD)

    # The edits that single rows have: (x u) v, never written out as a matrix for each row.
    if overlay.rows and name in overlay.rows:
        rows = overlay.rows[name]
        row_slot = rows.slot_L[layer]

        def add_row_edits(out_BTD):
            u_BFR = lax.dynamic_index_in_dim(rows.u_EBFR, row_slot, 0, keepdims=False)
            v_BRD = lax.dynamic_index_in_dim(rows.v_EBRD, row_slot, 0, keepdims=False)
            x_BTR = jnp.einsum("BTF,BFR->BTR", x_BTF, u_BFR, precision=PRECISION)
            return out_BTD + jnp.einsum("BTR,BRD->BTD", x_BTR, v_BRD, precision=PRECISION)

        out_BTD = lax.cond(row_slot >= 0, add_row_edits, lambda out_BTD: out_BTD, out_BTD)
    return out_BTD
