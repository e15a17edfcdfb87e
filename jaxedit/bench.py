"""How fast the phases of a study are on this machine, beside what the machine can do.

For each phase: seconds (the least of some runs, after compilation), the FLOPs that had to be done,
and their share of the rate at which the machine multiplies matrices. Useful FLOPs count real
tokens, layers that must run and logits that are read; padding, and what is computed twice, are not
useful. To compare machines, multiply seconds by the matmul rate."""

import functools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.editors import Editor, make_editor
from jaxedit.edits.edit import EDITED_WEIGHT, Edit, LowRank, apply, make_edit
from jaxedit.edits.request import Request
from jaxedit.metrics.perplexity import perplexity, perplexity_each, prepare
from jaxedit.models.config import DecoderConfig
from jaxedit.models.load import load
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.solving.keys import compute_keys
from jaxedit.solving.packed_prompts import pack_prompts
from jaxedit.solving.prompts import tokenise_request
from jaxedit.solving.rank_one import RankOneState
from jaxedit.solving.solve import solve
from jaxedit.stats.collect import collect_stats

LOT = 8  # single edits made together


class Phase(NamedTuple):
    """One line of the result; `flops` is None where a phase is not arithmetic."""

    name: str
    time_s: float
    flops: float | None
    share: float | None  # of the matmul rate
    peak_bytes: int  # of the process or device so far
    about: str


class BenchConfig(NamedTuple):
    """What is measured: a ROME edit of one request, the texts' perplexity after it, keys of many
    requests.
    """

    model: str
    mesh: str
    dtype: str | None
    layer: int
    n_steps: int
    templates: tuple[str, ...] | None
    request: Request
    requests: list[Request]
    texts: list[str]


def matmul_rate(dtype: jnp.dtype) -> tuple[float, int]:
    """FLOPs a second of the best of jax and, on a CPU, numpy for square matrices of a width, which
    is returned too.
    """
    on_cpu = jax.default_backend() == "cpu"
    width = 2048 if on_cpu else 8192
    square = jax.random.normal(
        jax.random.key(0), (width, width), dtype
    )  # not ones: chips multiply those faster
    times = [_best(jax.jit(lambda a: jnp.matmul(a, a, precision="highest")), square, repeats=8)]
    if on_cpu:
        host = np.asarray(square, np.float32)
        times.append(_best(lambda a: a @ a, host, repeats=8))
    return 2 * width**3 / min(times), width


Report = Callable[
    [str, float, float | None, str], None
]  # name, seconds, useful FLOPs, what it is about


def run_bench(
    setup: BenchConfig, on_phase: Callable[[Phase], None] = lambda phase: None
) -> dict[str, Any]:
    """Measures each phase; returns the phases and what they were measured on.

    Raises:
      ValueError: on a model, layer, facts or texts that cannot be used.
    """
    phases: list[Phase] = []

    def add(name: str, time_s: float, flops: float | None, about: str) -> None:
        share = None if flops is None else flops / time_s / rate
        phases.append(Phase(name, time_s, flops, share, peak_bytes(), about))
        on_phase(phases[-1])

    began = time.perf_counter()
    model = allocate_deltas(
        load(setup.model, mesh=setup.mesh, dtype=setup.dtype), EDITED_WEIGHT, (setup.layer,)
    )
    jax.block_until_ready(model.base)
    load_s = time.perf_counter() - began
    rate, width = matmul_rate(model.dtype)
    add("load", load_s, None, f"{setup.model}, {model.dtype}")
    editor, state = _editor(setup, model)
    edit = _bench_edit(setup, model, editor, state, add)
    _bench_texts(setup, model, apply(model, edit), add)
    _bench_many(setup, model, editor, state, add)
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "mesh": dict(model.mesh.shape),
        "matmul_gflops": rate / 1e9,
        "matmul_width": width,
        "phases": [
            phase._asdict() | {"gflop_equivalents": phase.time_s * rate / 1e9} for phase in phases
        ],
    }


def _editor(setup: BenchConfig, model: Model) -> tuple[Editor, RankOneState]:
    hyper = {} if setup.templates is None else {"context_templates": setup.templates}
    editor = make_editor("rome", layer=setup.layer, v_num_grad_steps=setup.n_steps, **hyper)
    return editor, editor.init(model, None)


def _bench_edit(
    setup: BenchConfig, model: Model, editor: Editor, state: RankOneState, add: Report
) -> Edit:
    """One edit of one request: what is compiled, the value, the solve, the model with it."""
    began = time.perf_counter()
    edit, _, info = editor.edit(model, [setup.request], state)
    first_s = time.perf_counter() - began
    time_s = _best(lambda: editor.edit(model, [setup.request], state))
    add("compile", max(first_s - time_s, 0.0), None, "the target's loop; or read from the cache")
    templates, n_steps = state.context_templates, int(info["n_steps"])
    flops = target_flops(model, setup.request, templates, setup.layer, n_steps)
    add(
        "target",
        time_s,
        flops,
        f"{setup.request.summary}, {len(templates)} templates, {n_steps} steps",
    )
    key_FR = np.ones((model.config.F, 1), np.float32)
    row_RD = np.ones((1, model.config.D), np.float32)
    add(
        "solve",
        _best(lambda: solve(state.regulariser, key_FR, key_FR, row_RD, 0.0)),
        None,
        "one key, C = I",
    )
    add("apply", _best(lambda: apply(model, edit).overlay.delta), None, "rank one")
    return edit


def _bench_texts(setup: BenchConfig, model: Model, edited: Model, add: Report) -> None:
    """The texts' perplexity after an edit, with and without what lies below it; their second
    moments.
    """
    config = model.config
    for name, lowest in (("perplexity", setup.layer), ("perplexity, all layers", 0)):
        texts = prepare(model, setup.texts, start_layer=lowest)
        lengths = perplexity(edited, texts).n_tokens + 1
        time_s = _best(lambda texts=texts: perplexity(edited, texts), repeats=5)
        flops = scoring_flops(config, lengths, config.L - lowest)
        add(
            name,
            time_s,
            flops,
            f"{len(lengths)} texts, {int(lengths.sum())} tokens, layers from {lowest}",
        )
    time_s = _best(lambda: collect_stats(model, setup.texts, [setup.layer]), repeats=2)
    flops = int(lengths.sum()) * ((setup.layer + 1) * layer_flops(config) + 2 * config.F**2)
    add("stats", time_s, flops, f"layer {setup.layer}, the same texts")


def _bench_many(
    setup: BenchConfig, model: Model, editor: Editor, state: RankOneState, add: Report
) -> None:
    """Keys of many requests in bulk, and a sweep of single edits with their perplexity."""
    config, layer, templates = model.config, setup.layer, state.context_templates
    questions = pack_prompts(model, setup.requests, (templates,), "mean")
    time_s = _best(lambda: compute_keys(model, questions, layer), repeats=2)
    n_own, n_shared = np.count_nonzero(questions.segment_GBT), questions.n_shared_C.sum()
    flops = n_own * (layer * layer_flops(config) + attention_flops(config)) + n_shared * (
        layer + 1
    ) * layer_flops(config)
    add(
        "keys",
        time_s,
        float(flops),
        f"{len(setup.requests)} requests in {len(templates)} templates",
    )
    lot, each = setup.requests[:LOT], editor.edit_each
    texts = prepare(model, setup.texts, start_layer=layer)

    infos = []

    def sweep():
        assert each is not None
        edits, infos[:] = zip(*each(model, lot, state), strict=True)
        return perplexity_each(model, texts, list(edits))

    time_s = _best(sweep, repeats=1) / len(lot)
    pairs = zip(lot, infos, strict=True)
    flops = np.mean(
        [
            target_flops(model, request, templates, layer, int(info["n_steps"]))
            for request, info in pairs
        ]
    )
    lengths = perplexity(model, texts).n_tokens + 1
    flops += scoring_flops(config, lengths, config.L - layer)
    add("sweep", time_s, float(flops), f"an edit with its perplexity, {len(lot)} made together")


def attention_flops(config: DecoderConfig) -> int:
    """The projections of one token in one layer's attention; scores and their sums are left out."""
    return 2 * config.D * config.H * (2 * config.N + 2 * config.K)


def layer_flops(config: DecoderConfig) -> int:
    """One token through one layer."""
    return attention_flops(config) + 2 * config.D * config.F * (2 + config.gated)


def scoring_flops(config: DecoderConfig, lengths: np.ndarray, n_layers: int) -> float:
    """Texts of these lengths through some layers, and the logits of all but their last tokens."""
    return float(
        lengths.sum() * n_layers * layer_flops(config)
        + (lengths - 1).sum() * 2 * config.D * config.V
    )


def target_flops(
    model: Model, request: Request, templates: tuple[str, ...], layer: int, n_steps: int
) -> float:
    """A target's optimisation: the prefixes once, then n_steps passes over the suffixes, all but
    the last with a gradient.

    A gradient with respect to activations costs as much as the pass itself: the weights need none.
    """
    config = model.config
    found = tokenise_request(model, request, templates)
    rows = [
        *((len(row.tokens) - 1, row) for row in found.templates),
        (len(found.kl.tokens), found.kl),
    ]
    n_prefix = sum(row.fact_position for _, row in rows)
    n_suffix = sum(n_tokens - row.fact_position for n_tokens, row in rows)
    n_read = sum(len(row.tokens) - row.first_target for row in found.templates) + 1
    n_above = config.L - 1 - layer
    once = layer_flops(config) * ((n_prefix + n_suffix) * (layer + 1) + n_prefix * n_above)
    a_pass = n_suffix * n_above * layer_flops(config) + n_read * 2 * config.D * config.V
    return float(once + (2 * n_steps - 1) * a_pass)


def scaling(
    setup: BenchConfig, counts: tuple[int, ...] = (1, 10, 100, 1000)
) -> dict[str, list[tuple[int, float]]]:
    """Seconds of an edit against how many were made before, and of a perplexity against tokens:
    flat, and linear.
    """
    model = allocate_deltas(
        load(setup.model, mesh=setup.mesh, dtype=setup.dtype), EDITED_WEIGHT, (setup.layer,)
    )
    editor, state = _editor(setup, model)
    rng = np.random.default_rng(0)
    edited, n_made, one_more = model, 0, []
    for count in counts:
        while n_made < count:
            u_FR = rng.standard_normal((model.config.F, 1)) / np.sqrt(model.config.F)
            edited = apply(
                edited,
                make_edit(
                    model,
                    [LowRank(EDITED_WEIGHT, setup.layer, u_FR, np.full((1, model.config.D), 1e-5))],
                ),
            )
            n_made += 1
        one_more.append(
            lambda edited=edited: (
                apply(edited, editor.edit(edited, [setup.request], state)[0]).overlay.delta
            )
        )
    texts = [prepare(model, setup.texts * times, start_layer=setup.layer) for times in (1, 2, 4, 8)]
    n_tokens = [sum(map(np.count_nonzero, each.packed.segment_GBT)) for each in texts]
    scored = [functools.partial(perplexity, edited, each) for each in texts]
    return {
        "edits": list(zip(counts, _best_in_turn(one_more), strict=True)),
        "tokens": list(zip(n_tokens, _best_in_turn(scored), strict=True)),
    }


def peak_bytes() -> int:
    """The most memory so far: the device's where it says so, else the process's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _best(run: Callable[..., Any], *args: Any, repeats: int = 3) -> float:
    """The least seconds of some runs after a first one, which may compile."""
    return _best_in_turn([functools.partial(run, *args)], repeats)[0]


def _best_in_turn(runs: Sequence[Callable[[], Any]], repeats: int = 3) -> list[float]:
    """`_best` of each, taken turn about, so that a machine that slows down does so for all of them."""
    times = np.empty((repeats + 1, len(runs)))
    for row in times:
        for i, run in enumerate(runs):
            began = time.perf_counter()
            jax.block_until_ready(run())
            row[i] = time.perf_counter() - began
    return times[1:].min(axis=0).tolist()
