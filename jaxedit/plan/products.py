"""Count the FLOPs of one product in a compiled program: a dot, or a convolution that is one."""

import math
import re

import numpy as np

from jaxedit.plan.hlo import Computation, HloArray, Instruction

PASSES = {"highest": 6, "high": 3}  # through a bfloat16 matrix unit, for float32 operands


def n_passes(computation: Computation, product: Instruction) -> int:
    """Return how many passes through a bfloat16 matrix unit a product takes."""
    operands = _operands(computation, product)
    if all(operand.dtype not in ("f32", "f64") for operand in operands):
        return 1
    precision = re.search(r"operand_precision=\{(\w+)", product.attributes)
    return PASSES.get(precision[1] if precision else "default", 1)


def product_flops(computation: Computation, product: Instruction) -> float:
    """Return 2 x output x contracted; of a convolution only positions that are not padding."""
    if product.opcode == "convolution":
        return _convolution_flops(computation, product)
    left, _ = _operands(computation, product)
    contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
    axes = map(int, re.findall(r"\d+", contracting[1])) if contracting else ()
    return 2.0 * math.prod(product.arrays[0].dims) * math.prod(left.dims[i] for i in axes)


def _operands(computation: Computation, product: Instruction) -> list[HloArray]:
    """Return the left and the right operand."""
    return [computation.instructions[name].arrays[0] for name in product.operands[:2]]


def _convolution_flops(computation: Computation, product: Instruction) -> float:
    # dim_labels=01bf_01io->01bf: one letter for each axis of the input, kernel and output; digits
    # are the spatial axes, b batch, f feature, i and o the kernel's input and output features.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {product.name}")
    left, kernel, out = (
        dict(zip(word, array.dims, strict=True))
        for word, array in zip(
            labels.groups(), (*_operands(computation, product), product.arrays[0]), strict=True
        )
    )
    # window={size=16x4 stride=15x3 ...}: a value for each spatial axis. Along each of them only the
    # pairs of output and kernel position that meet an entry of the input are multiplied.
    window = re.search(r"window=\{([^}]*)\}", product.attributes)
    settings = dict(re.findall(r"(\w+)=([\dx_\-]+)", window[1] if window else ""))
    pairs = 1
    for i, label in enumerate(sorted(filter(str.isdigit, labels[1]))):
        own = {key: text.split("x")[i] for key, text in settings.items()}
        pairs *= _n_pairs(left[label], kernel[label], out[label], own)
    groups = re.search(r"batch_group_count=(\d+)", product.attributes)
    n_groups = int(groups[1]) if groups else 1
    return 2.0 * pairs * out["b"] * out["f"] * kernel["i"] / n_groups


def _n_pairs(n_in: int, n_kernel: int, n_out: int, window: dict[str, str]) -> int:
    """Count, along one axis, the pairs of output and kernel position that meet an input entry."""
    stride, input_dilation, kernel_dilation = (
        int(window.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate")
    )
    padding = int(window.get("pad", "0_0").split("_")[0])
    kernel_offset = np.arange(n_kernel) * kernel_dilation
    position = np.arange(n_out)[:, None] * stride - padding + kernel_offset
    is_entry = (position >= 0) & (position % input_dilation == 0)
    return int(np.count_nonzero(is_entry & (position // input_dilation < n_in)))
