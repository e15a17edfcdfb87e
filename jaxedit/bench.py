"""Measure each phase of a study on this machine, beside what the machine can do.

For each phase: seconds (the least of some runs, after compilation), the FLOPs that had to be done
(`jaxedit.flops`) and the bytes that had to be moved (`jaxedit.bytes_moved`), and their shares of
the rates at which the machine multiplies matrices and moves memory. To compare machines, multiply
seconds by the matmul rate."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxedit.editors import Editor, make_editor, published_hyper
from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit, LowRank, make_edit
from jaxedit.edits.request import Request
from jaxedit.metrics.perplexity import perplexity, perplexity_each, prepare, scores_with_bos
from jaxedit.models.load import load
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.needs import Need, keys_need, scoring_need, stats_need, value_need
from jaxedit.solving.keys import compute_keys
from jaxedit.solving.packed_prompts import pack_prompts
from jaxedit.solving.rank_one import RankOneState
from jaxedit.solving.solve import solve
from jaxedit.stats.collect import collect_stats
from jaxedit.timing import least_seconds, matmul_rate, memory_rate, peak_bytes, seconds

SWEEP_EDITS = 8  # single edits that the sweep makes together


class BenchConfig(NamedTuple):
    """A benchmark's configuration.

    Attributes:
      model: as `jaxedit.load` takes it.
      mesh: such as "data:4,model:2"; empty: all devices on `data`.
      dtype: of the stored weights; None: the default of the device.
      layer: the edited one; None: the layer that ROME was published with for the model.
      v_num_grad_steps: of the value's optimisation.
      templates: context templates; None: sampled from the model.
      request: the fact that is edited.
      requests: whose keys are computed in bulk; the sweep edits the first of them.
      texts: for the perplexity and the second moments.
      edits: that the model has before all that is measured.
      profile: a folder for a trace of an edit with its perplexity, once both are compiled.
    """

    model: str
    mesh: str
    dtype: str | None
    layer: int | None
    v_num_grad_steps: int
    templates: tuple[str, ...] | None
    request: Request
    requests: list[Request]
    texts: list[str]
    edits: tuple[Edit, ...] = ()
    profile: str | None = None


class Phase(NamedTuple):
    """One phase, measured."""

    name: str
    time_s: float
    flops: float | None  # useful ones; None where a phase is not arithmetic
    share: float | None  # of the matmul rate
    moved_bytes: float | None  # of one device, where there are FLOPs
    bandwidth_share: float | None  # of its memory's rate
    peak_bytes: int  # of the process or device so far
    about: str


# (name, seconds, what it needs where it is arithmetic, what it is about): takes down a phase
Report = Callable[[str, float, Need | None, str], None]


class BenchContext(NamedTuple):
    """What all phases use: a model with room for an edit of one layer, and the editor of it."""

    config: BenchConfig
    model: Model
    layer: int
    editor: Editor
    state: RankOneState


def run_bench(
    config: BenchConfig, on_phase: Callable[[Phase], None] = lambda phase: None
) -> dict[str, Any]:
    """Measure each phase of a study.

    Args:
      config: what is measured.
      on_phase: is given each phase as soon as it is measured.

    Returns:
      The phases as dictionaries, and the device, mesh and matmul rate that they were measured on.

    Raises:
      ValueError: on a model, layer, facts or texts that cannot be used.
    """
    phases: list[Phase] = []

    def report(name: str, time_s: float, need: Need | None, about: str) -> None:
        shares = (None, None, None, None)
        if need is not None:
            moved_bytes = need.moved.of_device(model.mesh)
            share, moved_share = (
                amount / time_s / rate
                for amount, rate in ((need.flops, flops_per_s), (moved_bytes, bytes_per_s))
            )
            shares = (need.flops, share, moved_bytes, moved_share)
        phases.append(Phase(name, time_s, *shares, peak_bytes(), about))
        on_phase(phases[-1])

    # The model, and the rates that its phases are compared with.
    began = time.perf_counter()
    model, layer = jax.block_until_ready(_load(config))
    load_s = time.perf_counter() - began
    (flops_per_s, width), bytes_per_s = matmul_rate(model.dtype), memory_rate()
    report("load", load_s, None, f"{config.model}, {model.dtype}")
    # The phases of a study, in its order.
    context = _build_context(config, model, layer)
    edit = _time_edit(context, report)
    lengths = _time_texts(context, apply(model, edit), report)
    _time_keys(context, report)
    _time_sweep(context, lengths, report)
    if config.profile:
        _trace_edit(context, config.profile)
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "mesh": dict(model.mesh.shape),
        "matmul_gflops": flops_per_s / 1e9,
        "matmul_width": width,
        "memory_gb_per_s": bytes_per_s / 1e9,
        "phases": [
            phase._asdict() | {"gflop_equivalents": phase.time_s * flops_per_s / 1e9}
            for phase in phases
        ],
    }


def scaling(
    config: BenchConfig, counts: tuple[int, ...] = (1, 10, 100, 1000)
) -> dict[str, list[tuple[int, float]]]:
    """Measure how an edit and a perplexity scale.

    Args:
      config: what is measured.
      counts: how many edits the model has when one more is made, in ascending order.

    Returns:
      "edits": (count, seconds of one more edit) for each count, which should be flat; "tokens":
      (tokens, seconds of their perplexity) for the texts once, twice, four and eight times, which
      should be linear.
    """
    # One more edit after each count of others.
    model, layer = _load(config)
    context = _build_context(config, model, layer)
    (weight,) = context.editor.slots(model)
    rng = np.random.default_rng(0)
    edited, n_made, runs = model, 0, []
    for count in counts:
        # The others are small random edits: one more takes as long whatever they say.
        while n_made < count:
            u_FR = rng.standard_normal((model.config.F, 1)) / np.sqrt(model.config.F)
            v_RD = np.full((1, model.config.D), 1e-5)
            edited = apply(edited, make_edit(model, [LowRank(weight, layer, u_FR, v_RD)]))
            n_made += 1
        runs.append(functools.partial(_edit_once_more, context, edited))
    # More and more texts, under the model with all these edits.
    bos = scores_with_bos(model)
    texts = [prepare(model, config.texts * times, bos, start_layer=layer) for times in (1, 2, 4, 8)]
    n_tokens = [sum(map(np.count_nonzero, each.packed.segment_GBT)) for each in texts]
    scored = [functools.partial(perplexity, edited, each) for each in texts]
    return {
        "edits": list(zip(counts, least_seconds(runs), strict=True)),
        "tokens": list(zip(n_tokens, least_seconds(scored), strict=True)),
    }


def _load(config: BenchConfig) -> tuple[Model, int]:
    """Load the model with room for edits of one layer, and return that layer too."""
    model = load(config.model, mesh=config.mesh, dtype=config.dtype)
    for edit in config.edits:
        model = apply(model, edit)
    layer = published_hyper("rome", model)["layer"] if config.layer is None else config.layer
    for weight, layers in make_editor("rome", layer=layer).slots(model).items():
        model = allocate_deltas(model, weight, layers)
    return model, layer


def _build_context(config: BenchConfig, model: Model, layer: int) -> BenchContext:
    hyper: dict[str, Any] = {"layer": layer, "v_num_grad_steps": config.v_num_grad_steps}
    if config.templates is not None:
        hyper["context_templates"] = config.templates
    editor = make_editor("rome", **hyper)
    return BenchContext(config, model, layer, editor, editor.init(model, None))


def _time_edit(context: BenchContext, report: Report) -> Edit:
    """Measure one edit: compiling it, optimising its value, solving, and applying it."""
    model, editor, state = context.model, context.editor, context.state
    request = context.config.request
    began = time.perf_counter()
    edit, _, info = editor.edit(model, [request], state)
    first_s = time.perf_counter() - began
    time_s = seconds(lambda: editor.edit(model, [request], state))
    about = "the value's optimisation; or read from the cache"
    report("compile", max(first_s - time_s, 0.0), None, about)
    templates, n_steps = state.context_templates, int(info["n_steps"])
    about = f"{request.summary}, {len(templates)} templates, {n_steps} steps"
    need = value_need(model, [request], templates, context.layer, [n_steps])
    report("edit", time_s, need, about)
    key_FR = np.ones((model.config.F, 1), np.float32)
    value_RD = np.ones((1, model.config.D), np.float32)
    solve_s = seconds(lambda: solve(state.regulariser, key_FR, key_FR, value_RD, 0.0))
    report("solve", solve_s, None, "one key, C = I")
    apply_s = seconds(lambda: apply(model, edit).overlay.delta)
    report("apply", apply_s, None, "rank one")
    return edit


def _time_texts(context: BenchContext, edited: Model, report: Report) -> np.ndarray:
    """Measure the texts' perplexity after an edit, from its layer and from layer 0 on.

    Then the second moment of the texts' keys at that layer. Returns the texts' lengths in tokens.
    """
    model, layer, texts = context.model, context.layer, context.config.texts
    for name, lowest in (("perplexity", layer), ("perplexity, all layers", 0)):
        prepared = prepare(model, texts, scores_with_bos(model), start_layer=lowest)
        lengths = perplexity(edited, prepared).n_tokens + 1  # the first token is not scored
        time_s = seconds(functools.partial(perplexity, edited, prepared), repeats=5)
        about = f"{len(lengths)} texts, {int(lengths.sum())} tokens, layers from {lowest}"
        report(name, time_s, scoring_need(model, lengths, model.config.L - lowest), about)
    time_s = seconds(lambda: collect_stats(model, texts, [layer]), repeats=2)
    need = stats_need(model, int(lengths.sum()), layer)
    report("stats", time_s, need, f"layer {layer}, the same texts")
    return lengths


def _time_keys(context: BenchContext, report: Report) -> None:
    """Measure the keys of many requests, computed in bulk."""
    model, layer, requests = context.model, context.layer, context.config.requests
    templates = context.state.context_templates
    packed = pack_prompts(model, requests, (templates,), "mean")
    time_s = seconds(lambda: compute_keys(model, packed, layer), repeats=2)
    about = f"{len(requests)} requests in {len(templates)} templates"
    n_own, n_shared = int(np.count_nonzero(packed.segment_GBT)), int(packed.n_shared_C.sum())
    report("keys", time_s, keys_need(model, n_own, n_shared, layer), about)


def _time_sweep(context: BenchContext, lengths: np.ndarray, report: Report) -> None:
    """Measure a single edit with its perplexity, some of them made together."""
    model, layer, state = context.model, context.layer, context.state
    requests, edit_each = context.config.requests[:SWEEP_EDITS], context.editor.edit_each
    texts = prepare(model, context.config.texts, scores_with_bos(model), start_layer=layer)
    assert edit_each is not None, "ROME edits each of several requests alone"
    infos = []

    def sweep() -> Any:
        edits, infos[:] = zip(*edit_each(model, requests, state), strict=True)
        return perplexity_each(model, texts, list(edits))

    time_s = seconds(sweep, repeats=1) / len(requests)
    n_steps_I = [int(info["n_steps"]) for info in infos]
    need = value_need(model, requests, state.context_templates, layer, n_steps_I)
    for _ in requests:
        need = need.plus(scoring_need(model, lengths, model.config.L - layer))
    about = f"an edit with its perplexity, {len(requests)} made together"
    report("sweep", time_s, need.shared_by(len(requests)), about)


def _trace_edit(context: BenchContext, folder: str) -> None:
    """Write a trace of an edit and of the texts' perplexity after it; both are compiled."""
    model, request = context.model, context.config.request
    bos = scores_with_bos(model)
    texts = prepare(model, context.config.texts, bos, start_layer=context.layer)
    with jax.profiler.trace(folder):
        edit, _, _ = context.editor.edit(model, [request], context.state)
        perplexity(apply(model, edit), texts)


def _edit_once_more(context: BenchContext, edited: Model) -> Any:
    """Edit a model that has edits, and return what of the new one takes longest to be ready."""
    edit, _, _ = context.editor.edit(edited, [context.config.request], context.state)
    return apply(edited, edit).overlay.delta
