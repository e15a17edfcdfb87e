"""Slices of parameters out of a checkpoint's tensors, by the einops patterns of a family's table.

A table entry is (parameters, "axes of the tensor -> axes of the parameter"). One tensor may hold
several parameters, along an axis `c`, or queries', keys' and values' heads one after the other
along an axis `n`; `two` and `h` are the halves of a head.
"""

import math
import re
from collections.abc import Callable, Mapping

import einops
import numpy as np

from jaxedit.models.config import DecoderConfig
from jaxedit.rounding import ceil_div

Span = tuple[int, int]  # first and end


def read_parameter_slice(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    config: DecoderConfig,
    entry: tuple[str, str],
    part: int,
    cut: Mapping[str, Span],
) -> np.ndarray:
    """Read one slice of a parameter from its tensor, in the parameter's layout without L.

    Args:
      read: one slice for each of the tensor's dimensions -> that rectangle.
      config: the decoder, whose key-value heads may be copies of the tensor's.
      entry: the tensor's line in the family's table.
      part: which of the parameters in it.
      cut: axis letter -> the slice's span in the parameter.
    """
    tensor_side, parameter_side = entry[1].split(" -> ")
    sizes = axis_sizes(config, entry)
    is_grouped = "n" in sizes  # queries' heads, then keys', then values'
    has_copies = part > 0 if is_grouped else "K" in sizes
    n_copies = config.kv_replication if has_copies else 1

    # What is wanted of each of the tensor's axes: everything, or the parameter's cut.
    wanted = {axis: cut.get(axis, (0, size)) for axis, size in sizes.items()}
    if "c" in sizes:
        wanted["c"] = (part, part + 1)
    if "c" in sizes and "N" in sizes:
        # Queries, keys and values in one tensor all have as many heads, and one letter for them.
        wanted["N"] = cut.get("N") or cut["K"]
    if n_copies > 1:
        # The tensor's heads of which the cut holds copies; of the first and last maybe not all.
        first, end = cut["K"]
        wanted["K"] = (first // n_copies, ceil_div(end, n_copies))
    if is_grouped:
        # The heads of this part, behind those of the parts before.
        first, end = wanted.get("K") or cut.get("N") or cut["K"]
        n_before = sum(_fused_heads(config)[:part])
        wanted["n"] = (n_before + first, n_before + end)

    # The smallest rectangle that holds it, taken apart into single axes and cut down to it.
    rectangles = [_rectangle(axes, sizes, wanted) for axes in _dimensions(tensor_side)]
    spans, shapes, inner = zip(*rectangles, strict=True)
    tensor = read(spans).reshape(sum(shapes, ()))[sum(inner, ())]

    # From the tensor's order of axes to the parameter's.
    single_axes = tensor_side.replace("(", "").replace(")", "")
    found = einops.rearrange(tensor, f"{single_axes} -> {parameter_side}")
    found = found[0] if "c" in sizes else found
    if n_copies == 1:
        return found

    # Each head as often as the mesh needs it; the cut may begin and end between a head's copies.
    kv_axis = [group[0] for group in _dimensions(parameter_side)].index("n" if is_grouped else "K")
    offset = wanted["K"][0] * n_copies
    copies = range(cut["K"][0] - offset, cut["K"][1] - offset)
    return np.take(np.repeat(found, n_copies, kv_axis), copies, kv_axis)


def to_tensor(
    config: DecoderConfig, entry: tuple[str, str], parameters: list[np.ndarray]
) -> np.ndarray:
    """Put parameters together to the tensor that holds them, of a table without halves of heads.

    Args:
      config: the decoder as the checkpoint has it, without copies of heads.
      entry: the tensor's line in the family's table.
      parameters: those of the line, in its order, one layer's each.
    """
    tensor_side, parameter_side = entry[1].split(" -> ")
    sizes, whole = axis_sizes(config, entry), parameters[0]
    if "c" in sizes:
        whole = np.stack(parameters)
    if "n" in sizes:
        heads_axis = [group[0] for group in _dimensions(parameter_side)].index("n")
        whole = np.concatenate(parameters, heads_axis)
    return einops.rearrange(whole, f"{parameter_side} -> {tensor_side}")


def _rectangle(
    axes_of_dim: list[str], sizes: Mapping[str, int], wanted: Mapping[str, Span]
) -> tuple[slice, tuple[int, ...], tuple[slice, ...]]:
    """Find the shortest span of one dimension that holds what is wanted of its axes.

    Of (N H), heads 2 to 4 are the span from 2 H to 4 H, in which N has size 2; the first half of
    every head is the whole dimension, of which H is cut afterwards.

    Args:
      axes_of_dim: the axes that the dimension is made of, the slowest first.
      sizes: axis -> its whole size.
      wanted: axis -> the span wanted of it.

    Returns:
      The span to be read, its axes' sizes there, and where in them what is wanted lies.
    """
    first, width = 0, math.prod(sizes[axis] for axis in axes_of_dim)
    n_read = width
    shape, inner = [], []
    is_contiguous = True  # while every axis so far is cut down to one entry
    for axis in axes_of_dim:
        lo, end = wanted[axis]
        width //= sizes[axis]
        if is_contiguous:
            first, n_read = first + lo * width, (end - lo) * width
            is_contiguous = end - lo == 1
            lo, end = 0, end - lo
            shape.append(end)
        else:
            shape.append(sizes[axis])
        inner.append(slice(lo, end))
    return slice(first, first + n_read), tuple(shape), tuple(inner)


def tensor_shape(config: DecoderConfig, entry: tuple[str, str]) -> tuple[int, ...]:
    """Return the shape that a tensor of this table entry must have."""
    sizes = axis_sizes(config, entry)
    tensor_side = entry[1].split(" -> ")[0]
    return tuple(math.prod(sizes[axis] for axis in group) for group in _dimensions(tensor_side))


def axis_sizes(config: DecoderConfig, entry: tuple[str, str]) -> dict[str, int]:
    """Return axis -> size in the checkpoint, for the axes of a table entry."""
    parameters, pattern = entry
    sizes = config.sizes() | {
        "K": config.K // config.kv_replication,
        "c": len(parameters.split()),
        "n": sum(_fused_heads(config)),
        "two": 2,
        "h": config.H // 2,
    }
    used = pattern.replace("(", " ").replace(")", " ").split()
    return {axis: size for axis, size in sizes.items() if axis in used}


def _fused_heads(config: DecoderConfig) -> tuple[int, int, int]:
    """Return the heads of queries, keys and values in a tensor that holds all of them."""
    K = config.K // config.kv_replication
    return config.N, K, K


def _dimensions(side: str) -> list[list[str]]:
    """Split one side of a layout into the axes of each dimension.

    "(c N H) D" is [[c, N, H], [D]].
    """
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", side)]
