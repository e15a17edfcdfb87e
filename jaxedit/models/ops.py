"""The parameters and operations of which the decoder's modules are made, and the edits' term."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxedit import axes
from jaxedit.models.config import DecoderConfig

# Float32 weights mean float32 products: without this a TPU would use bfloat16 passes.
PRECISION = lax.Precision.HIGHEST
# A product that depends on the platform is none to a checkpoint policy, unless it has this name.
KEPT_PRODUCT = "product"
# How GPUs compile what runs whole layers; other devices take no notice. The library's kernels take
# a layer's weight where it lies in the stack. XLA's own are tried out for long and copy it, and so
# does a product of queries, keys and values with their weights side by side.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}


@jax.tree_util.register_static
class Slots(tuple[int, ...]):
    """Each layer's index in `delta_EFD`; -1: not edited.

    Static data: which layers are edited is known when a program is compiled, and no layer that is
    not edited asks.
    """


class PerRowEdits(NamedTuple):
    """Low-rank changes of a weight that differ from row to row of a batch.

    Attributes:
      u_EBFR: float32, each row's left factors by slot.
      v_EBRD: float32, each row's right factors.
      slot_L: as in `Overlay`.
    """

    u_EBFR: jax.Array
    v_EBRD: jax.Array
    slot_L: Slots | jax.Array


class Overlay(NamedTuple):
    """The sum of a model's edits, kept beside its base weights.

    Attributes:
      delta: edited weight -> float32 `delta_EFD`, the change of each edited layer.
      slot: edited weight -> `slot_L`: `Slots`, or an array of the same numbers that is only known
        when a program runs.
      rows: edited weight -> edits that only single rows of the batch at hand have besides.
    """

    delta: dict[str, jax.Array]
    slot: Mapping[str, Slots | jax.Array]
    rows: dict[str, PerRowEdits] | None = None


def parameter(config: DecoderConfig, name: str) -> nnx.Param:
    """Make a parameter of the shape that `axes.PARAMETERS` spells; its values come later."""
    sizes = config.sizes()
    return nnx.Param(jnp.zeros(tuple(sizes[a] for a in axes.PARAMETERS[name])))


def linear(equation: str, x, w, b) -> jax.Array:
    """Compute x w + b in the weight's precision, accumulated and returned in float32."""
    w = jnp.asarray(w)
    out: Any = _einsum(equation, x, w) if w.dtype == jnp.float32 else _product(equation, x, w)
    return out if b is None else out + jnp.asarray(b).astype(jnp.float32)


def _einsum(equation: str, x, w) -> jax.Array:
    """Compute x w in the dtype of w, accumulated and returned in float32."""
    return jnp.einsum(
        equation, x.astype(w.dtype), w, precision=PRECISION, preferred_element_type=jnp.float32
    )


def _own_kernel(product: jax.Array) -> jax.Array:
    """Keep what follows a product out of it on GPUs; nothing elsewhere.

    A matrix library's kernel takes a layer's weight where it lies in the stack. Where XLA gives it
    the bias to add as well, the weight is copied out first.
    """
    return lax.platform_dependent(product, cuda=lax.optimization_barrier, default=lambda out: out)


# The derivative that JAX would take of a bfloat16 product with a float32 result is a product of
# float32 numbers: six passes on a TPU, no tensor cores and an upcast copy of the weight on a GPU.
# This one's products are bfloat16 ones too, accumulated in float32.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(equation: str, x, w) -> Any:
    return _own_kernel(_einsum(equation, x, w))


def _product_forward(equation: str, x, w) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `_product` again: a checkpoint policy sees no product inside it, and would not keep it.
    return _own_kernel(_einsum(equation, x, w)), (x, w)


def _product_backward(equation: str, saved: tuple[jax.Array, jax.Array], gradient):
    x, w = saved
    inputs, output = equation.split("->")
    of_x, of_w = inputs.split(",")
    x_gradient = _own_kernel(_einsum(f"{output},{of_w}->{of_x}", gradient, w))
    w_gradient = _einsum(f"{output},{of_x}->{of_w}", gradient, x.astype(w.dtype))
    return x_gradient.astype(x.dtype), w_gradient.astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)


def float32_product(equation: str, x, y, dtype: jnp.dtype) -> jax.Array:
    """Compute a product of float32 arrays that are not weights.

    Args:
      equation: of the einsum.
      x: its first operand.
      y: its second one.
      dtype: of the model's weights. Beside bfloat16 ones a TPU takes three passes and not six,
        which loses 2^-16; GPUs and CPUs multiply float32 numbers as such.
    """
    exact = functools.partial(jnp.einsum, equation, precision=PRECISION)
    if dtype == jnp.float32:
        return exact(x, y)
    in_three = functools.partial(jnp.einsum, equation, precision=lax.Precision.HIGH)
    product = lax.platform_dependent(x, y, tpu=in_three, default=exact)
    return checkpoint_name(product, KEPT_PRODUCT)


def product_in_parts(equation: str, x, delta) -> jax.Array:
    """Compute x delta in two bfloat16 products: x as a weight reads it, delta in two parts.

    The parts hold 16 of delta's 24 bits.
    """
    # Not a conversion there and back: compilers take that for nothing.
    upper = lax.reduce_precision(delta, exponent_bits=8, mantissa_bits=7)
    parts = (part.astype(jnp.bfloat16) for part in (upper, delta - upper))
    return functools.reduce(jnp.add, (_product(equation, x, part) for part in parts))


def activation(name: str, x) -> jax.Array:
    """Apply the activation of a DecoderConfig: "gelu_tanh", "gelu" or "silu"."""
    if name == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=name == "gelu_tanh")


def softcap(x, cap: float | None) -> jax.Array:
    """Keep numbers below a cap: c tanh(x / c); None: as they are."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def add_delta(
    overlay: Overlay, name: str, layer, x_BTF, out_BTD, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Add the edits' term x @ delta of a layer to the weight's output, in float32.

    Layers without edits and models without edits pay nothing.

    Args:
      overlay: the edits.
      name: the weight, e.g. "mlp/w_down"; of "mlp/w_up" and "mlp/w_gate", which read D and put out
        F, the letters F and D below stand for input and output all the same.
      layer: which, possibly traced.
      x_BTF: the weight's input.
      out_BTD: its output without the edits.
      dtype: of the weight. Edits of a bfloat16 one are multiplied in parts on accelerators, which
        loses 2^-16 of the term (`float32_product`, `product_in_parts`).
    """
    x_BTF = x_BTF.astype(jnp.float32)

    # The edits that the whole model has.
    if name in overlay.delta:

        def add_edits(slot, out_BTD):
            delta_FD = lax.dynamic_index_in_dim(overlay.delta[name], slot, 0, keepdims=False)
            exact = functools.partial(jnp.einsum, "BTF,FD->BTD", precision=PRECISION)
            if dtype == jnp.float32:
                return out_BTD + exact(x_BTF, delta_FD)
            in_three = lax.DotAlgorithmPreset.BF16_BF16_F32_X3
            split = functools.partial(jnp.einsum, "BTF,FD->BTD", precision=in_three)
            parts = functools.partial(product_in_parts, "BTF,FD->BTD")
            term_BTD = lax.platform_dependent(x_BTF, delta_FD, cuda=split, tpu=parts, default=exact)
            return out_BTD + term_BTD

        out_BTD = _add_where_edited(overlay.slot[name], layer, add_edits, out_BTD)

    # The edits that single rows have: (x u) v, never written out as a matrix for each row.
    if overlay.rows and name in overlay.rows:
        rows = overlay.rows[name]

        def add_row_edits(slot, out_BTD):
            u_BFR = lax.dynamic_index_in_dim(rows.u_EBFR, slot, 0, keepdims=False)
            v_BRD = lax.dynamic_index_in_dim(rows.v_EBRD, slot, 0, keepdims=False)
            x_BTR = float32_product("BTF,BFR->BTR", x_BTF, u_BFR, dtype)
            return out_BTD + float32_product("BTR,BRD->BTD", x_BTR, v_BRD, dtype)

        out_BTD = _add_where_edited(rows.slot_L, layer, add_row_edits, out_BTD)
    return out_BTD


def _add_where_edited(
    slot_L: Slots | jax.Array, layer, add: Callable[..., jax.Array], out_BTD
) -> jax.Array:
    """Call `add(slot, out_BTD)` where the layer is edited; ask only where that is not known."""
    if isinstance(slot_L, Slots) and isinstance(layer, int):
        return add(slot_L[layer], out_BTD) if slot_L[layer] >= 0 else out_BTD
    if isinstance(slot_L, Slots) and max(slot_L) < 0:
        return out_BTD  # no layer is edited
    slot = jnp.array(tuple(slot_L) if isinstance(slot_L, Slots) else slot_L)[layer]
    if isinstance(slot_L, Slots) and min(slot_L) >= 0:
        return add(slot, out_BTD)
    return lax.cond(slot >= 0, add, lambda slot, out_BTD: out_BTD, slot, out_BTD)


def split_by_edits(overlay: Overlay, lo: int, hi: int) -> list[tuple[int, int, Overlay]]:
    """Divide layers lo..hi-1 into runs, each of layers in which the same weights are edited.

    Where the overlay does not say which layers are edited that is one run.

    Returns:
      First layer and end of each run, and the overlay to run it with: it has the weights that all
      of the run's layers are edited in, and no layer needs to ask.
    """
    rows = overlay.rows or {}
    tables = [*overlay.slot.values(), *(edits.slot_L for edits in rows.values())]
    if not all(isinstance(table, Slots) for table in tables):
        return [(lo, hi, overlay)]

    def is_edited(layer: int) -> list[bool]:
        return [int(table[layer]) >= 0 for table in tables]

    def of_run(slot_L) -> Slots | None:
        # The run's layers have slots; the numbers of other layers are not read.
        return Slots(max(int(slot), 0) for slot in slot_L) if int(slot_L[first]) >= 0 else None

    runs = []
    ends = [l for l in range(lo + 1, hi + 1) if l == hi or is_edited(l) != is_edited(l - 1)]
    for first, end in zip([lo, *ends], ends, strict=False):
        slot = {name: of_run(slot_L) for name, slot_L in overlay.slot.items()}
        slot = {name: slot_L for name, slot_L in slot.items() if slot_L is not None}
        row_slot = {name: of_run(edits.slot_L) for name, edits in rows.items()}
        in_rows = {
            name: rows[name]._replace(slot_L=slot_L)
            for name, slot_L in row_slot.items()
            if slot_L is not None
        }
        delta = {name: overlay.delta[name] for name in slot}
        runs.append((first, end, Overlay(delta, slot, in_rows or None)))
    return runs
