"""Compile the programs of a phase for devices that are not there, and count what they do.

The bound of a phase is the longest of three times at the chip's published rates, each of which
assumes that nothing waits for anything else: products at the matrix units' rate, bytes from and to
the main memory, bytes to other chips. No program can be faster; a good one comes close."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.errors import JaxRuntimeError
from jax.experimental.compilation_cache import compilation_cache

from jaxedit.models.model import Model
from jaxedit.plan.chips import Chip
from jaxedit.plan.count import NO_COST, NO_HINTS, Cost, LoopHints, add_cost, count_program
from jaxedit.plan.floor import floor_seconds
from jaxedit.plan.models import device_bytes
from jaxedit.plan.phases import Phase
from jaxedit.plan.workload import Workload

LARGEST_SHOWN = 5  # collectives


class CompiledPhase(NamedTuple):
    """One phase: bytes of one device, what it does, and the least time for that.

    A `peak_bytes` that is too large is the compiler's own estimate where it gave up."""

    name: str
    about: str
    held_bytes: int  # stays on the device, but is no argument
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    peak_bytes: int
    flops: float
    flops_by_passes: dict[int, float]
    moved_bytes: float
    sent_bytes: float
    sent: dict[str, float]  # the largest collectives
    unknown_loops: list[str]  # counted once, since their trip counts are not known
    bound_s: float | None
    bound_by: str | None  # "products", "memory", "collectives"
    floor_s: float | None  # what any program would need (`jaxedit.plan.floor`)
    fits: bool


class ProgramMemory(NamedTuple):
    """Bytes of one device while a program runs."""

    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0

    @property
    def total(self) -> int:
        """The sum of all three."""
        return self.arguments + self.temporaries + self.outputs


class ProgramTooLarge(Exception):
    """The compiler refused a program for its size."""

    def __init__(self, memory: ProgramMemory):
        super().__init__(f"a program needs {memory.total} bytes")
        self.memory = memory


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Turn off the cache of compiled programs.

    What was compiled for devices that are not there would be written, but never read."""
    was = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether it is in use is asked once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
        compilation_cache.reset_cache()


def compile_phase(phase: Phase, model: Model, work: Workload, chip: Chip) -> CompiledPhase:
    """Compile what a phase runs and count it.

    Its memory is that of the program that needs the most."""
    # What the phase runs is compiled instead, program by program; where one is too large for the
    # compiler the phase ends there, with what was counted so far.
    cost, largest, compiles = NO_COST, ProgramMemory(), True

    def call(function, *arguments, hints: LoopHints = NO_HINTS, times: int = 1) -> Any:
        nonlocal cost, largest
        compiled, memory = _compile(function, arguments)
        largest = max(largest, memory, key=lambda memory: memory.total)
        cost = add_cost(cost, count_program(compiled.as_text(), hints), times)
        return jax.tree.map(_abstract, compiled.out_info, compiled.output_shardings)

    held = phase.held_bytes(model, work)
    try:
        phase.run(model, work, call)
    except ProgramTooLarge as error:
        compiles = False
        largest = max(largest, error.memory, key=lambda memory: memory.total)
    # A phase fits where its largest program does, beside what lies on the device anyway. It takes
    # at least as long as the slowest of products, memory and collectives.
    peak = held + largest.total
    times = _least_times(cost, chip) if compiles else {}
    bound_by = max(times, key=lambda kind: times[kind]) if any(times.values()) else None
    most_sent = sorted(cost.sent.items(), key=lambda item: -item[1])[:LARGEST_SHOWN]
    return CompiledPhase(
        name=phase.name,
        about=phase.about(model, work),
        held_bytes=held,
        argument_bytes=largest.arguments,
        temporary_bytes=largest.temporaries,
        output_bytes=largest.outputs,
        peak_bytes=peak,
        flops=cost.flops,
        flops_by_passes=dict(cost.products),
        moved_bytes=cost.moved_bytes,
        sent_bytes=cost.sent_bytes,
        sent={" of ".join(filter(None, key)): n_bytes for key, n_bytes in most_sent},
        unknown_loops=sorted(cost.unknown),
        bound_s=times[bound_by] if bound_by else None,
        bound_by=bound_by,
        floor_s=floor_seconds(phase.floor(model, work), model.mesh, chip),
        fits=compiles and peak <= chip.hbm_bytes,
    )


def _compile(function: Any, arguments: tuple) -> tuple[Any, ProgramMemory]:
    """Compile a jitted function for abstract arguments.

    Raises:
      ProgramTooLarge: where the compiler refuses it for its size.
    """
    try:
        compiled = function.lower(*arguments).compile()
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ProgramTooLarge(_estimated_memory(str(error), arguments)) from error
    stats = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = ProgramMemory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, outputs)
    return compiled, memory


def _estimated_memory(message: str, arguments: tuple) -> ProgramMemory:
    """Read from the compiler's refusal what a program would need; it may not say how much."""
    found = re.search(r"(?:Used |memory required [\w ]*\()([\d.]+)([KMGT]?)", message)
    used = int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0
    leaves = jax.tree.leaves(arguments)
    arrays = device_bytes([leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)])
    return ProgramMemory(arrays, max(0, used - arrays), 0)


def _abstract(result: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(result.shape, result.dtype, sharding=sharding)


def _least_times(cost: Cost, chip: Chip) -> dict[str, float]:
    """Return the seconds that a chip needs at the least; empty where its rates are not known."""
    if not (chip.flops_per_s and chip.hbm_bandwidth and chip.ici_bandwidth):
        return {}
    passes_times_flops = sum(passes * flops for passes, flops in cost.products.items())
    return {
        "products": passes_times_flops / chip.flops_per_s,
        "memory": cost.moved_bytes / chip.hbm_bandwidth,
        "collectives": cost.sent_bytes / chip.ici_bandwidth,
    }
