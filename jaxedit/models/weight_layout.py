"""How a checkpoint's tensors become slices of parameters, by the einops patterns of a family's
table.

A table entry is (parameters, "axes of the tensor -> axes of the parameter"). One tensor may hold
several parameters, along an axis `c`; `two` and `h` are the halves of a head."""

import math
import re
from collections.abc import Callable, Mapping

import einops
import numpy as np

from jaxedit.models.config import DecoderConfig

Span = tuple[int, int]  # first and end


def read_parameter_slice(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    config: DecoderConfig,
    entry: tuple[str, str],
    part: int,
    cut: Mapping[str, Span],
) -> np.ndarray:
    """What a tensor gives for one slice of a parameter, in the parameter's layout without L.

    Args:
      read: one slice for each of the tensor's dimensions -> that rectangle.
      config: the decoder, whose key-value heads may be copies of the tensor's.
      entry: the tensor's line in the family's table.
      part: which of the parameters in it.
      cut: axis letter -> the slice's span in the parameter.
    """
    theirs, ours = entry[1].split(" -> ")
    sizes = axis_sizes(config, entry)
    wanted = {axis: (0, size) for axis, size in sizes.items()} | {
        axis: cut[axis] for axis in sizes if axis in cut
    }
    if (
        "c" in sizes
        # with queries, keys and values in one tensor all have as many heads, and one letter for them
    ):
        wanted |= {"c": (part, part + 1), "N": cut.get("N") or cut["K"]}
    if "K" in sizes and config.kv_replication > 1:
        wanted["K"] = (
            cut["K"][0] // config.kv_replication,
            -(-cut["K"][1] // config.kv_replication),
        )
    dimensions = [_rectangle(axes_of_dim, sizes, wanted) for axes_of_dim in _dimensions(theirs)]
    spans, shapes, inner = zip(*dimensions, strict=True)
    tensor = read(spans).reshape(sum(shapes, ()))[sum(inner, ())]
    found = einops.rearrange(tensor, f"{theirs.replace('(', '').replace(')', '')} -> {ours}")
    found = found[0] if "c" in sizes else found
    if "K" not in sizes or config.kv_replication == 1:
        return found
    axis = [group[0] for group in _dimensions(ours)].index("K")
    first = wanted["K"][0] * config.kv_replication
    return np.take(
        np.repeat(found, config.kv_replication, axis),
        range(cut["K"][0] - first, cut["K"][1] - first),
        axis,
    )


def _rectangle(
    axes_of_dim: list[str], sizes: Mapping[str, int], wanted: Mapping[str, Span]
) -> tuple[slice, tuple[int, ...], tuple[slice, ...]]:
    """Of one dimension: the shortest span that holds what is wanted, its axes' sizes there, and
    where in them it lies.
    """
    first, width = 0, math.prod(sizes[axis] for axis in axes_of_dim)
    n_read = width
    shape, inner = [], []
    lies_together = True  # while every axis so far is cut down to one entry
    for axis in axes_of_dim:
        lo, end = wanted[axis]
        width //= sizes[axis]
        if lies_together:
            first, n_read = first + lo * width, (end - lo) * width
            lies_together = end - lo == 1
            lo, end = 0, end - lo
            shape.append(end)
        else:
            shape.append(sizes[axis])
        inner.append(slice(lo, end))
    return slice(first, first + n_read), tuple(shape), tuple(inner)


def tensor_shape(config: DecoderConfig, entry: tuple[str, str]) -> tuple[int, ...]:
    """The shape that a tensor of this table entry must have."""
    sizes = axis_sizes(config, entry)
    return tuple(
        math.prod(sizes[axis] for axis in group) for group in _dimensions(entry[1].split(" -> ")[0])
    )


def axis_sizes(config: DecoderConfig, entry: tuple[str, str]) -> dict[str, int]:
    """The sizes in the checkpoint of the axes of a table entry."""
    parts, pattern = entry
    sizes = config.sizes() | {
        "K": config.K // config.kv_replication,
        "c": len(parts.split()),
        "two": 2,
        "h": config.H // 2,
    }
    return {
        axis: size
        for axis, size in sizes.items()
        if axis in pattern.replace("(", " ").replace(")", " ").split()
    }


def _dimensions(side: str) -> list[list[str]]:
    """One side of a layout as the axes of each dimension: "(c N H) D" is [[c, N, H], [D]]."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", side)]
