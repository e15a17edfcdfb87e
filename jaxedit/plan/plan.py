"""Plan a study: whether it fits a mesh of chips, and how fast it could be there.

Every phase is compiled ahead of time and counted. The solver's host part, tokenising and
compilation are not in it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxedit.mesh import parse_mesh
from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model
from jaxedit.plan.chips import Chip, build_mesh, find_chip
from jaxedit.plan.compile import CompiledPhase, compile_phase, no_compilation_cache
from jaxedit.plan.models import abstract_model, device_bytes, edited_layers, read_decoder_config
from jaxedit.plan.phases import PHASES, whitener_bytes
from jaxedit.plan.workload import Workload

# A mesh fits where these phases do: they need the most beside the weights.
CONFIRMED_BY = ("perplexity, all layers", "second moments")


class PlanConfig(NamedTuple):
    """What is planned.

    Attributes:
      model: a name of `jaxedit.plan.models.CONFIGS`, or a directory with a config.json.
      topology: as `jaxedit.plan.chips.find_chip` takes it.
      mesh: such as "data:1,model:8"; empty: the smallest that fits.
      dtype: of the stored weights, "float32" or "bfloat16".
      layers: edited ones; None: those published for the model.
      n_requests: edited together.
      n_templates: context templates.
      v_num_grad_steps: of a value's optimisation.
      row_tokens: of a row of texts.
      suggest: whether the smallest mesh that fits is looked for although `mesh` is given.
      price: of a chip-hour, in any currency; None: not given.
    """

    model: str
    topology: str
    mesh: str
    dtype: str
    layers: tuple[int, ...] | None
    n_requests: int
    n_templates: int
    v_num_grad_steps: int
    row_tokens: int
    suggest: bool
    price: float | None = None


class SmallestMesh(NamedTuple):
    """The mesh with the fewest chips that a study fits."""

    mesh: Mesh
    resident_bytes: int  # weights, overlay and whiteners on one device
    compiled: dict[str, CompiledPhase]  # those that confirm it, by name


def make_plan(
    config: PlanConfig, on_phase: Callable[[CompiledPhase], None] = lambda phase: None
) -> dict[str, Any]:
    """Compile and count every phase.

    Args:
      config: what is planned.
      on_phase: is given each phase as soon as it is compiled.

    Returns:
      What was planned, each `CompiledPhase` as a dictionary under "phases", whether all of them fit
      under "fits", the chip-hours of all phases once and their price (None where a rate is not
      known), and the smallest mesh (None where it was not looked for or there is none).

    Raises:
      ValueError: on a model, topology, mesh, dtype or layer that cannot be.
    """
    decoder = read_decoder_config(config.model)
    devices, chip = find_chip(config.topology)
    work = _workload(config, decoder)

    def model_on(mesh: Mesh) -> Model:
        return abstract_model(mesh, config.model, decoder, jnp.dtype(config.dtype), work.layers)

    # The mesh: as given, else the smallest that fits, which may be asked for in any case.
    given = None
    if config.mesh:
        given = build_mesh(devices, *parse_mesh(config.mesh, len(devices)))
    with no_compilation_cache():
        smallest = None
        if config.suggest or given is None:
            smallest = smallest_mesh(decoder, devices, chip, work, model_on)
        mesh = given or (smallest and smallest.mesh)
        if mesh is None:
            raise ValueError(
                f"{config.model} fits no mesh of {config.topology} ({len(devices)} x {chip.name}); "
                "take more chips"
            )
        # Every phase on that mesh; some may have been compiled to find it.
        known = smallest.compiled if smallest and given is None else {}
        model, phases = model_on(mesh), []
        for phase in PHASES:
            phases.append(known.get(phase.name) or compile_phase(phase, model, work, chip))
            on_phase(phases[-1])
    return {
        "model": config.model,
        "dtype": config.dtype,
        "topology": config.topology,
        "chip": chip._asdict(),
        "mesh": dict(model.mesh.shape),
        "kv_replication": model.config.kv_replication,
        "work": work._asdict(),
        "fits": all(phase.fits for phase in phases),
        "phases": [phase._asdict() for phase in phases],
        **_cost(phases, mesh, config.price),
        "smallest": smallest and _describe(smallest),
    }


def _describe(smallest: SmallestMesh) -> dict[str, Any]:
    return {
        "mesh": dict(smallest.mesh.shape),
        "resident_bytes": smallest.resident_bytes,
        "compiled": list(smallest.compiled),
    }


def _cost(phases: list[CompiledPhase], mesh: Mesh, price: float | None) -> dict[str, float | None]:
    """Return the hours of all chips together that the phases need once, and what these cost."""
    bounds = [phase.bound_s for phase in phases if phase.bound_s is not None]
    if not bounds or not all(phase.fits for phase in phases):
        return {"chip_hours": None, "price": None}
    chip_hours = sum(bounds) * mesh.size / 3600
    return {"chip_hours": chip_hours, "price": None if price is None else chip_hours * price}


def _workload(config: PlanConfig, decoder: DecoderConfig) -> Workload:
    """Check what is planned and return its workload."""
    for name in ("n_requests", "n_templates", "v_num_grad_steps", "row_tokens"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least 1")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {config.dtype!r}: weights are stored as float32 or bfloat16")
    return Workload(
        layers=tuple(sorted(set(config.layers or edited_layers(decoder)))),
        n_requests=config.n_requests,
        n_templates=config.n_templates,
        v_num_grad_steps=config.v_num_grad_steps,
        row_tokens=config.row_tokens,
    )


def smallest_mesh(
    decoder: DecoderConfig,
    devices: list[Any],
    chip: Chip,
    work: Workload,
    model_on: Callable[[Mesh], Model],
) -> SmallestMesh | None:
    """Find the mesh with the fewest chips that a study fits; None where all are too few.

    Powers of two are tried, each with the largest `model` axis that splits heads and MLP evenly,
    which leaves the least on a device. What lies there all the time is added up first; what passes
    is compiled.

    Args:
      decoder: the model's configuration.
      devices: of the topology.
      chip: what each of them is.
      work: what the study does.
      model_on: (mesh) -> the abstract model on it.
    """
    phases = [phase for phase in PHASES if phase.name in CONFIRMED_BY]
    for n_chips in _powers_of_two(len(devices)):
        n_model = max(m for m in _powers_of_two(n_chips) if decoder.N % m == decoder.F % m == 0)
        mesh = build_mesh(devices, n_chips // n_model, n_model)
        model = model_on(mesh)
        stored, whiteners = device_bytes((model.base, model.overlay)), whitener_bytes(model, work)
        # Second moments are as large as whiteners: two sums go into a batch, and two come out.
        if stored + 4 * whiteners > chip.hbm_bytes:
            continue
        compiled = {}
        for phase in phases:
            compiled[phase.name] = compile_phase(phase, model, work, chip)
            if not compiled[phase.name].fits:
                break
        else:
            return SmallestMesh(mesh, stored + whiteners, compiled)
    return None


def _powers_of_two(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`."""
    return [2**i for i in range(most.bit_length())]
