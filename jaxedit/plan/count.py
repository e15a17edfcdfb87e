"""Count what a compiled program does on one device; loops count as often as they run.

Conventions.

    products    2 per multiply-add of dots and convolutions (the TPU's form of dots), by how many
                passes through a bfloat16 matrix unit they take: one for bfloat16, six for float32
                at the highest precision, three at high
    moved       operands and results of each instruction, a fusion being one; of slices and gathers
                what they take, of updates what they change. Arrays that the compiler keeps on the
                chip do not count
    sent        by a device in a group of n: all-gather (n - 1) times its part, all-reduce
                2 (n - 1) / n, reduce-scatter and all-to-all (n - 1) / n of the operand, permute
                the operand
    branches    `branch_share` times the one with more products, the rest the other

A loop whose trip count is unknown, and was not given, counts once and is named in `unknown`.
`products.py` and `traffic.py` count a single instruction.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxedit.plan.hlo import (
    Computation,
    Instruction,
    KnownEntries,
    Module,
    known_in_loop,
    parse_module,
    trip_count,
)
from jaxedit.plan.products import n_passes, product_flops
from jaxedit.plan.traffic import describe_collective, is_collective, moved_bytes, sent_bytes


class Cost(NamedTuple):
    """What one device multiplies, moves and sends."""

    products: dict[int, float]  # passes -> FLOPs
    moved_bytes: float
    sent: dict[tuple[str, str], float]  # (collective with its array, where it comes from) -> bytes
    unknown: frozenset[str]  # loops that were counted once

    @property
    def flops(self) -> float:
        """The FLOPs of all products."""
        return float(sum(self.products.values()))

    @property
    def sent_bytes(self) -> float:
        """The bytes sent by all collectives."""
        return float(sum(self.sent.values()))


NO_COST = Cost({}, 0.0, {}, frozenset())


class LoopHints(NamedTuple):
    """What a program's text does not say about loops with traced bounds.

    Attributes:
      trips: how often their bodies run; None: not known.
      branch_share: in which share of these runs the branch with more products is taken.
    """

    trips: int | None = None
    branch_share: float = 1.0


NO_HINTS = LoopHints()


def count_program(text: str, hints: LoopHints = NO_HINTS) -> Cost:
    """Count what the text of an optimised HLO module does on one device."""
    module = parse_module(text)
    return _count_computation(module, module.computations[module.entry], hints, {})


def add_cost(total: Cost, cost: Cost, times: float = 1) -> Cost:
    """Return total + times cost."""
    return Cost(
        _add_entries(total.products, cost.products, times),
        total.moved_bytes + times * cost.moved_bytes,
        _add_entries(total.sent, cost.sent, times),
        total.unknown | cost.unknown,
    )


def _add_entries(
    total: dict[Any, float], added: dict[Any, float], times: float = 1
) -> dict[Any, float]:
    keys = [*total, *(key for key in added if key not in total)]
    return {key: total.get(key, 0.0) + times * added.get(key, 0.0) for key in keys}


def _count_computation(
    module: Module, computation: Computation, hints: LoopHints, known: KnownEntries
) -> Cost:
    """Count a computation with all that it calls; `known` are integers in its tuple parameter."""
    total, counted = NO_COST, set()
    for each in computation.instructions.values():
        if each.opcode == "while":
            total = add_cost(total, _count_loop(module, computation, each, hints, known))
        elif each.opcode == "conditional":
            most, fewest = _branch_costs(module, each, hints)
            total = add_cost(total, most, hints.branch_share)
            total = add_cost(total, fewest, 1 - hints.branch_share)
        elif each.opcode in ("call", "async-start"):
            for name in each.called("to_apply") or each.called("calls"):
                called = _count_computation(module, module.computations[name], hints, {})
                total = add_cost(total, called)
        else:
            total = add_cost(total, _count_instruction(module, computation, each, counted))
    return total


def _count_loop(
    module: Module,
    computation: Computation,
    loop: Instruction,
    hints: LoopHints,
    known: KnownEntries,
) -> Cost:
    """Count a loop's body as often as it runs: by the text, else by the hint, else once."""
    body = module.computations[loop.called("body")[0]]
    inside = known_in_loop(module, computation, loop, known)
    cost = _count_computation(module, body, hints, inside)
    trips = trip_count(module, computation, loop, known)
    if trips is None:
        trips = hints.trips
    if trips is None:
        return cost._replace(unknown=cost.unknown | {loop.name})
    return add_cost(NO_COST, cost, trips)


def _branch_costs(module: Module, conditional: Instruction, hints: LoopHints) -> tuple[Cost, Cost]:
    """Count the branch with the most products and the one with the fewest."""
    names = conditional.called("branch_computations")
    if not names:
        keys = ("true_computation", "false_computation")
        names = [name for key in keys for name in conditional.called(key)]
    costs = [_count_computation(module, module.computations[name], hints, {}) for name in names]
    costs.sort(key=lambda cost: (cost.flops, cost.moved_bytes))
    return costs[-1], costs[0]


def _count_instruction(
    module: Module, computation: Computation, instruction: Instruction, counted: set[str]
) -> Cost:
    """Count an instruction that calls nothing but what is fused into it.

    Args:
      module: the program.
      computation: the one in which it stands.
      instruction: the instruction.
      counted: the collectives counted so far; those found here are added.
    """
    products: dict[int, float] = {}
    sent: dict[tuple[str, str], float] = {}
    for within, each in _with_fused(module, computation, instruction):
        if each.opcode in ("dot", "convolution"):
            flops = {n_passes(within, each): product_flops(within, each)}
            products = _add_entries(products, flops)
        if is_collective(each):
            # An asynchronous one stands in every fusion that it runs beside: it counts once.
            channel = re.search(r"channel_id=(\d+)", each.attributes)
            key = channel[0] if channel else each.name
            if key not in counted:
                counted.add(key)
                n_bytes = {describe_collective(within, each): sent_bytes(module, within, each)}
                sent = _add_entries(sent, n_bytes)
    return Cost(products, moved_bytes(module, computation, instruction), sent, frozenset())


def _with_fused(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """Yield an instruction, or those fused into it, each with the computation it stands in."""
    if instruction.opcode != "fusion":
        yield computation, instruction
        return
    inner = module.computations[instruction.called("calls")[0]]
    for each in inner.instructions.values():
        yield from _with_fused(module, inner, each)
