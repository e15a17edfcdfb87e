"""What a compiled program does on one device: products, bytes moved, bytes sent; loops count as
often as they run.

Conventions.

    products    2 per multiply-add of dots and convolutions (the TPU's form of dots), by how many passes through a bfloat16
                matrix unit they take: one for bfloat16, six for float32 at the highest precision,
                three at high
    moved       operands and results of each instruction, a fusion being one; of slices and gathers what they take, of
                updates what they change. Arrays that the compiler keeps on the chip do not count
    sent        by a device in a group of n: all-gather (n - 1) times its part, all-reduce 2 (n - 1) / n, reduce-scatter and
                all-to-all (n - 1) / n of the operand, permute the operand
    branches    `share` times the one with more products, the rest the other

A loop whose trip count is unknown, and was not given, counts once and is named in `unknown`.
"""

import math
import re
from typing import Any, NamedTuple

import numpy as np

from jaxedit.plan.hlo import (
    Array,
    Computation,
    Instruction,
    Module,
    Values,
    loop_values,
    parse,
    trip_count,
)

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "optimization-barrier",
}
FREE_CALLS = (
    "AllocateBuffer",
    "ConcatBitcast",
    "AsyncCollective",
)  # custom calls that only name memory
TAKING = ("dynamic-slice", "slice", "gather")


class Cost(NamedTuple):
    """What one device does."""

    products: dict[int, float]  # passes -> FLOPs
    moved_bytes: float
    sent: dict[tuple[str, str], float]  # (collective with its array, where it comes from) -> bytes
    unknown: frozenset[str]

    @property
    def flops(self) -> float:
        """All products."""
        return float(sum(self.products.values()))

    @property
    def sent_bytes(self) -> float:
        """By all collectives."""
        return float(sum(self.sent.values()))


NOTHING = Cost({}, 0.0, {}, frozenset())


class LoopHints(NamedTuple):
    """What the text cannot say: the trip count of loops with traced bounds, and how often the
    larger branch is taken.
    """

    trips: int | None = None
    share: float = 1.0


NO_HINTS = LoopHints()


def count(text: str, given: LoopHints = NO_HINTS) -> Cost:
    """Counts a compiled program's text."""
    module = parse(text)
    return _of_computation(module, module.computations[module.entry], given, {})


def plus(one: Cost, other: Cost, times: float = 1) -> Cost:
    """one + times other."""
    products, sent = (
        _sum(a, b, times) for a, b in ((one.products, other.products), (one.sent, other.sent))
    )
    return Cost(
        products, one.moved_bytes + times * other.moved_bytes, sent, one.unknown | other.unknown
    )


def _sum(one: dict[Any, float], other: dict[Any, float], times: float) -> dict[Any, float]:
    return {
        key: one.get(key, 0.0) + times * other.get(key, 0.0)
        for key in [*one, *(key for key in other if key not in one)]
    }


def _of_computation(
    module: Module, computation: Computation, given: LoopHints, values: Values
) -> Cost:
    total, counted = NOTHING, set()
    for each in computation.instructions.values():
        if each.opcode == "while":
            body = module.computations[each.called("body")[0]]
            trips = trip_count(module, computation, each, values)
            inside = _of_computation(
                module, body, given, loop_values(module, computation, each, values)
            )
            if trips is None and given.trips is None:
                total = plus(total, NOTHING._replace(unknown=frozenset({each.name})))
            total = plus(total, inside, next((n for n in (trips, given.trips) if n is not None), 1))
        elif each.opcode == "conditional":
            names = each.called("branch_computations") or each.called(
                "true_computation"
            ) + each.called("false_computation")
            branches = [
                _of_computation(module, module.computations[name], given, {}) for name in names
            ]
            branches.sort(key=lambda cost: (cost.flops, cost.moved_bytes))
            total = plus(plus(total, branches[-1], given.share), branches[0], 1 - given.share)
        elif each.opcode in ("call", "async-start"):
            for name in each.called("to_apply") or each.called("calls"):
                total = plus(total, _of_computation(module, module.computations[name], given, {}))
        else:
            total = plus(total, _of_instruction(module, computation, each, counted))
    return total


def _of_instruction(
    module: Module, computation: Computation, each: Instruction, counted: set[str]
) -> Cost:
    """One instruction that calls nothing but what is fused into it; `counted` holds the collectives
    seen so far.
    """
    products: dict[int, float] = {}
    sent: dict[tuple[str, str], float] = {}
    for within, found in _fused(module, computation, each):
        if found.opcode in ("dot", "convolution"):
            products = _sum(products, {_passes(within, found): _flops(within, found)}, 1)
        if found.opcode.removesuffix("-start") in COLLECTIVES:
            channel = re.search(r"channel_id=(\d+)", found.attributes)
            key = channel[0] if channel else found.name
            if key not in counted:  # an asynchronous one stands in every fusion that it runs beside
                counted.add(key)
                sent = _sum(
                    sent, {_described(within, found): _sent_bytes(module, within, found)}, 1
                )
    return Cost(products, _moved_bytes(module, computation, each), sent, frozenset())


def _fused(module: Module, computation: Computation, each: Instruction):
    """An instruction, or those that were fused into it, each with the computation it stands in."""
    if each.opcode != "fusion":
        yield computation, each
        return
    inner = module.computations[each.called("calls")[0]]
    for found in inner.instructions.values():
        yield from _fused(module, inner, found)


def _operand(computation: Computation, each: Instruction, i: int) -> Array:
    return computation.instructions[each.operands[i]].arrays[0]


def _passes(computation: Computation, product: Instruction) -> int:
    if all(_operand(computation, product, i).dtype not in ("f32", "f64") for i in (0, 1)):
        return 1
    precision = re.search(r"operand_precision=\{(\w+)", product.attributes)
    return {"highest": 6, "high": 3}.get(precision[1] if precision else "default", 1)


def _flops(computation: Computation, product: Instruction) -> float:
    """2 x output x contracted; of a convolution only the pairs of positions that are not padding."""
    left, right = (_operand(computation, product, i) for i in (0, 1))
    out = product.arrays[0]
    if product.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        axes = [int(i) for i in re.findall(r"\d+", found[1])] if found else []
        return 2.0 * math.prod(out.dims) * math.prod(left.dims[i] for i in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {product.name}")
    words = zip(labels.groups(), (left, right, out), strict=True)
    by_label = [dict(zip(word, array.dims, strict=True)) for word, array in words]
    spatial = sorted(label for label in labels[1] if label.isdigit())
    window = dict(
        re.findall(
            r"(\w+)=([\dx_\-]+)",
            (re.search(r"window=\{([^}]*)\}", product.attributes) or ["", ""])[1],
        )
    )
    pairs = 1
    for i, label in enumerate(spatial):
        own = {key: text.split("x")[i] for key, text in window.items()}
        pairs *= _pairs(by_label[0][label], by_label[1][label], by_label[2][label], own)
    groups = re.search(r"batch_group_count=(\d+)", product.attributes)
    return (
        2.0
        * pairs
        * by_label[2]["b"]
        * by_label[2]["f"]
        * by_label[1]["i"]
        / (int(groups[1]) if groups else 1)
    )


def _pairs(n_in: int, n_kernel: int, n_out: int, window: dict[str, str]) -> int:
    """Along one axis of a convolution: the pairs of output and kernel position that meet an entry
    of the input.
    """
    stride, dilate, spread = (
        int(window.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate")
    )
    low = int(window.get("pad", "0_0").split("_")[0])
    at = np.arange(n_out)[:, None] * stride - low + np.arange(n_kernel) * spread
    return int(np.count_nonzero((at >= 0) & (at % dilate == 0) & (at // dilate < n_in)))


def _sent_bytes(module: Module, computation: Computation, each: Instruction) -> float:
    kind, n = each.opcode.removesuffix("-start"), _group_size(module, each)
    size = sum(
        array.n_bytes for name in each.operands for array in computation.instructions[name].arrays
    )
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    if kind == "all-gather":
        return (n - 1) * size
    if kind == "all-reduce" and not computation.name.startswith("all-reduce-scatter"):
        return 2 * (n - 1) / n * size
    return (n - 1) / n * size


def _group_size(module: Module, each: Instruction) -> int:
    """How many devices take part together: of {{0,1},{2,3}}, [4,2]<=[8] or mesh['a'=2,'b'=4] {'b'}."""
    axes = re.search(r"replica_groups=[^{]*mesh\[([^\]]*)\] \{([^}]*)\}", each.attributes)
    if axes:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes[1]))
        return math.prod(
            int(part or sizes[name])
            for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes[2])
        )
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", each.attributes)
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", each.attributes)
    return int(counted[1]) if counted else len(listed[1].split(",")) if listed else module.n_devices


def _described(computation: Computation, each: Instruction) -> tuple[str, str]:
    arrays = [array for name in each.operands for array in computation.instructions[name].arrays]
    shown = " ".join(f"{array.dtype}[{','.join(map(str, array.dims))}]" for array in arrays)
    return f"{each.opcode.removesuffix('-start')} {shown}", each.op_name


def _moved_bytes(module: Module, computation: Computation, each: Instruction) -> float:
    """Bytes between the main memory and the chip."""
    if each.opcode in FREE or _only_names(each):
        return 0.0
    operands = [computation.instructions[name].arrays for name in each.operands]
    written = sum(array.main_bytes for array in each.arrays)
    if each.opcode in (
        "copy-done",
        "slice-done",
    ):  # where it comes from stands at the start of the copy
        start = computation.instructions[each.operands[0]]
        source = (
            computation.instructions[start.operands[0]].arrays[0]
            if start.operands
            else each.arrays[0]
        )
        return written + (0.0 if source.space else each.arrays[0].n_bytes)
    if (
        each.opcode.endswith(("-start", "-done", "-update"))
        and each.opcode.removesuffix("-start") not in COLLECTIVES
    ):
        return 0.0
    if each.opcode in TAKING:
        return written + (0.0 if operands[0][0].space else each.arrays[0].n_bytes)
    if each.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * operands[1 if each.opcode == "dynamic-update-slice" else -1][0].main_bytes
    if each.opcode != "fusion":
        return written + sum(array.main_bytes for arrays in operands for array in arrays)
    inner = module.computations[each.called("calls")[0]]
    read = 0.0
    for parameter, arrays in zip(inner.parameters, operands, strict=True):
        whole = sum(array.main_bytes for array in arrays)
        read += min(whole, _read_bytes(module, inner, parameter)) if whole else 0.0
    return read + _written_bytes(inner, each.arrays)


def _only_names(each: Instruction) -> bool:
    """Whether a custom call does nothing but name memory."""
    return each.opcode == "custom-call" and any(name in each.attributes for name in FREE_CALLS)


def _read_bytes(module: Module, inner: Computation, name: str) -> float:
    """What a fusion reads of one of its parameters."""
    whole = sum(array.n_bytes for array in inner.instructions[name].arrays)
    total = 0.0
    for user in inner.instructions.values():
        if name not in user.operands or user.opcode == "tuple" or user.opcode in COLLECTIVES:
            continue
        if user.opcode in TAKING and user.operands[0] == name:
            total += user.arrays[0].n_bytes
        elif (user.opcode == "dynamic-update-slice" and user.operands[0] == name) or _only_names(
            user
        ):
            continue
        elif user.opcode in ("bitcast", "get-tuple-element"):
            total += _read_bytes(module, inner, user.name)
        elif user.opcode == "fusion":
            nested = module.computations[user.called("calls")[0]]
            own = [
                one
                for one, operand in zip(nested.parameters, user.operands, strict=True)
                if operand == name
            ]
            total += sum(_read_bytes(module, nested, one) for one in own)
        else:
            return whole
    return min(whole, total)


def _written_bytes(inner: Computation, arrays: tuple[Array, ...]) -> float:
    """What a fusion writes: nothing of a parameter handed on, of an array updated in place the
    update.
    """
    root = inner.instructions[inner.root]
    names = root.operands if root.opcode == "tuple" else (inner.root,)
    if len(names) != len(arrays):
        return 0.0 if root.opcode == "custom-call" else sum(array.main_bytes for array in arrays)
    total = 0.0
    for name, array in zip(names, arrays, strict=True):
        while inner.instructions[name].opcode == "bitcast":
            name = inner.instructions[name].operands[0]
        made = inner.instructions[name]
        if made.opcode == "dynamic-update-slice":
            total += 0.0 if array.space else _operand(inner, made, 1).n_bytes
        elif made.opcode != "parameter":
            total += array.main_bytes
    return total
