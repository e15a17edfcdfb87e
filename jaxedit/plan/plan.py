"""Does a study fit a mesh of chips, and how fast could it be there: every phase compiled ahead of
time and counted.

The bound of a phase is the longest of three times at the chip's published rates, each of which
assumes that nothing waits for anything else: products at the matrix units' rate, bytes from and to
the main memory, bytes to other chips. No program can be faster; a good one comes close. The
solver's host part, tokenising and compilation are not in it."""

import contextlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model
from jaxedit.plan.chips import Chip, find_chip, mesh_of, parse_mesh
from jaxedit.plan.count import NO_HINTS, NOTHING, Cost, LoopHints, count, plus
from jaxedit.plan.models import device_bytes, edited_layers, model_on, read
from jaxedit.plan.phases import PHASES, Phase, Workload, whitener_bytes

CONFIRMED_BY = (
    "perplexity, all layers",
    "second moments",
)  # the phases that need the most beside the weights
WORST_SHOWN = 5


class PlanConfig(NamedTuple):
    """What is planned; an empty mesh stands for the smallest that fits, absent layers for published
    ones.
    """

    model: str
    topology: str
    mesh: str
    dtype: str
    layers: tuple[int, ...] | None
    requests: int
    templates: int
    steps: int
    length: int
    suggest: bool


class CompiledPhase(NamedTuple):
    """One phase: bytes of one device, what it does, and the least time for that. A `peak_bytes`
    that is too large is the compiler's own estimate where it gave up."""

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
    fits: bool


def make_plan(
    setup: PlanConfig, on_phase: Callable[[CompiledPhase], None] = lambda phase: None
) -> dict[str, Any]:
    """Compiles and counts every phase.

    Raises:
      ValueError: on a model, topology, mesh, dtype or layer that cannot be.
    """
    config = read(setup.model)
    devices, chip = find_chip(setup.topology)
    layers = setup.layers or edited_layers(setup.model, config)
    work = Workload(
        tuple(sorted(set(layers))), setup.requests, setup.templates, setup.steps, setup.length
    )
    for name in ("requests", "templates", "steps", "length"):
        if getattr(setup, name) < 1:
            raise ValueError(f"{name}={getattr(setup, name)}: expected at least 1")
    if setup.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {setup.dtype!r}: weights are stored as float32 or bfloat16")

    def model_of(mesh: Mesh) -> Model:
        return model_on(mesh, setup.model, config, jnp.dtype(setup.dtype), work.layers)

    asked = mesh_of(devices, *parse_mesh(setup.mesh)) if setup.mesh else None
    with no_compilation_cache():
        small = (
            smallest_mesh(config, devices, chip, work, model_of)
            if setup.suggest or asked is None
            else None
        )
        mesh = asked or (small and small.mesh)
        if mesh is None:
            raise ValueError(
                f"{setup.model} fits no mesh of {setup.topology} ({len(devices)} x {chip.name}); take more chips"
            )
        model, phases = model_of(mesh), []
        for phase in PHASES:
            phases.append(compile_phase(phase, model, work, chip))
            on_phase(phases[-1])
    return {
        "model": setup.model,
        "dtype": setup.dtype,
        "topology": setup.topology,
        "chip": chip._asdict(),
        "mesh": dict(model.mesh.shape),
        "kv_replication": model.config.kv_replication,
        "work": work._asdict(),
        "fits": all(phase.fits for phase in phases),
        "phases": [phase._asdict() for phase in phases],
        "smallest": small and {**small._asdict(), "mesh": dict(small.mesh.shape)},
    }


@contextlib.contextmanager
def no_compilation_cache():
    """Without the cache of compiled programs: what was compiled for devices that are not there is
    written, but never read.
    """
    was = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether it is in use is asked once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
        compilation_cache.reset_cache()


class Memory(NamedTuple):
    """Bytes of one device while a program runs; the program that needs the most stands for its
    phase.
    """

    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.arguments + self.temporaries + self.outputs


def compile_phase(phase: Phase, model: Model, work: Workload, chip: Chip) -> CompiledPhase:
    """Compiles what a phase runs and counts it."""
    cost, most = NOTHING, Memory()

    def call(function, *arguments, given: LoopHints = NO_HINTS, times: int = 1):
        nonlocal cost, most
        try:
            compiled = function.lower(*arguments).compile()
        except JaxRuntimeError as error:
            most = max(most, _too_large(error, arguments), key=lambda memory: memory.total)
            raise
        stats = compiled.memory_analysis()
        outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
        memory = Memory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, outputs)
        most = max(most, memory, key=lambda memory: memory.total)
        cost = plus(cost, count(compiled.as_text(), given), times)
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=sharding
            ),
            compiled.out_info,
            compiled.output_shardings,
        )

    held, compiles = phase.held(model, work), True
    try:
        phase.run(model, work, call)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiles = False
    return _priced(phase.name, phase.about(model, work), held, most, cost, chip, compiles)


def _priced(
    name: str, about: str, held: int, memory: Memory, cost: Cost, chip: Chip, compiles: bool
) -> CompiledPhase:
    """A phase with the times that its chip needs at the least."""
    times = {}
    if compiles and chip.flops_per_s and chip.hbm_bandwidth and chip.ici_bandwidth:
        times = {
            "products": sum(passes * flops for passes, flops in cost.products.items())
            / chip.flops_per_s,
            "memory": cost.moved_bytes / chip.hbm_bandwidth,
            "collectives": cost.sent_bytes / chip.ici_bandwidth,
        }
    bound_by = max(times, key=lambda kind: times[kind]) if any(times.values()) else None
    peak = held + memory.total
    largest = sorted(cost.sent.items(), key=lambda item: -item[1])[:WORST_SHOWN]
    return CompiledPhase(
        name=name,
        about=about,
        held_bytes=held,
        argument_bytes=memory.arguments,
        temporary_bytes=memory.temporaries,
        output_bytes=memory.outputs,
        peak_bytes=peak,
        flops=cost.flops,
        flops_by_passes=dict(cost.products),
        moved_bytes=cost.moved_bytes,
        sent_bytes=cost.sent_bytes,
        sent={" of ".join(filter(None, key)): n_bytes for key, n_bytes in largest},
        unknown_loops=sorted(cost.unknown),
        bound_s=times[bound_by] if bound_by else None,
        bound_by=bound_by,
        fits=compiles and peak <= chip.hbm_bytes,
    )


def _too_large(error: Exception, arguments: tuple) -> Memory:
    """What a program would need that the compiler refused for its size.

    Raises:
      JaxRuntimeError: where it was refused for another reason.
    """
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    found = re.search(r"(?:Used |memory required [\w ]*\()([\d.]+)([KMGT]?)", str(error))
    used = (
        int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0
    )  # it may not say how much
    arrays = device_bytes(
        [each for each in jax.tree.leaves(arguments) if isinstance(each, jax.ShapeDtypeStruct)]
    )
    return Memory(arrays, max(0, used - arrays), 0)


class SmallestMesh(NamedTuple):
    """The mesh with the fewest chips that a study fits."""

    mesh: Mesh
    resident_bytes: int  # weights, overlay and whiteners on one device
    compiled: list[str]  # the phases that were compiled to confirm it


def smallest_mesh(
    config: DecoderConfig,
    devices: list,
    chip: Chip,
    work: Workload,
    model_of: Callable[[Mesh], Model],
) -> SmallestMesh | None:
    """The mesh with the fewest chips that a study fits, None where not even all of them suffice.

    Powers of two are tried, each with the largest `model` axis that splits heads and MLP evenly,
    which leaves the least on a device. What lies there all the time is added up first; what passes
    is compiled."""
    phases = [phase for phase in PHASES if phase.name in CONFIRMED_BY]
    for n in (2**i for i in range(len(devices).bit_length())):
        n_model = max(
            m for m in (2**i for i in range(n.bit_length())) if config.N % m == config.F % m == 0
        )
        mesh = mesh_of(devices, n // n_model, n_model)
        model = model_of(mesh)
        stored, whiteners = device_bytes((model.base, model.overlay)), whitener_bytes(model, work)
        if (
            stored + 4 * whiteners > chip.hbm_bytes
        ):  # second moments: two sums come in, and two go out
            continue
        if all(compile_phase(phase, model, work, chip).fits for phase in phases):
            return SmallestMesh(mesh, stored + whiteners, list(CONFIRMED_BY))
    return None
