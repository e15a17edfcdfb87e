"""The phases of a study as calls of the library's own jitted functions, on arrays that are shapes
only.

Each phase is a function of the model, the work and `call`, which compiles what a phase would run,
notes what it costs, and returns shapes and shardings of the result for the next call. What a text
cannot say is given here: the trip counts of loops over layers with traced bounds, and in how many
of these layers the branch of edited ones is taken."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxedit.models import packing, score
from jaxedit.models.model import Model
from jaxedit.plan.count import LoopHints
from jaxedit.plan.models import activation, device_bytes, parameter
from jaxedit.solving import keys, packed_prompts, value, value_loop
from jaxedit.solving import solve as solving
from jaxedit.solving.prompt_batch import PREFIX_STEP, PaddedShape, PromptBatch
from jaxedit.solving.site import Site
from jaxedit.solving.solve import KeyRegulariser
from jaxedit.stats import collect

# Lengths as those of CounterFact with sampled templates of ten tokens, padded as the library pads.
SHARED_TOKENS = 2 * PREFIX_STEP  # what a template begins with
QUESTION_TOKENS = PREFIX_STEP  # a prompt up to its subject
TARGET = PaddedShape(prefix=3 * PREFIX_STEP, suffix=8, n_read=2)


class Workload(NamedTuple):
    """What is to be done; one call of a phase is for all requests, or one batch of texts."""

    layers: tuple[int, ...]  # edited ones
    requests: int  # edited together
    templates: int
    steps: int  # v_num_grad_steps
    length: int  # tokens of a row of texts


Call = Callable[
    ..., Any
]  # (function, *its arguments, given=Given(...), times=...) -> shapes of what it returns


class Phase(NamedTuple):
    """A phase: what it calls, what stays on a device besides, and what it is about."""

    name: str
    run: Callable[[Model, Workload, Call], None]
    held: Callable[[Model, Workload], int]
    about: Callable[[Model, Workload], str]


def perplexity_phase(model: Model, work: Workload, call: Call) -> None:
    """Texts after an edit: the layers from the lowest edited one on, the residual stream before it
    being kept.
    """
    lowest, L = work.layers[0], model.config.L
    rows = _text_rows(model, _n_rows(model, work.length), work.length)
    h_BTD = activation(model.mesh, "BTD", (*rows[0].shape, model.config.D), jnp.float32)
    given = LoopHints(L - lowest, len(work.layers) / (L - lowest))
    call(score.token_losses_of_batch, model, *rows, h_BTD, lowest, given=given)


def whole_perplexity_phase(model: Model, work: Workload, call: Call) -> None:
    """Texts through all layers, as before the first edit and in other layers' edits."""
    rows = _text_rows(model, _n_rows(model, work.length), work.length)
    given = LoopHints(model.config.L, len(work.layers) / model.config.L)
    call(score.token_losses_of_batch, model, *rows, None, 0, given=given)


def key_phase(model: Model, work: Workload, call: Call) -> None:
    """Keys of all requests in all templates and bare, at the highest edited layer."""
    layer, C, mesh = work.layers[-1], work.templates + 1, model.mesh
    n_edited = len(work.layers)
    shared_CP = activation(mesh, "__", (C, SHARED_TOKENS))
    cache = call(
        keys.prefill_shared,
        model,
        shared_CP,
        jnp.int32(layer),
        given=LoopHints(layer + 1, n_edited / (layer + 1)),
    )
    n_batches, B, T = _question_rows(model, work)
    rows = _text_rows(model, B, T)
    place_Q2 = jax.ShapeDtypeStruct((-(-C * work.requests // n_batches), 2), jnp.int32)
    n_shared_C, template_B = activation(mesh, "_", (C,)), activation(mesh, "B", (B,))
    arguments = model, cache, n_shared_C, *rows, template_B, place_Q2, jnp.int32(layer), "key"
    call(
        keys.read_positions,
        *arguments,
        given=LoopHints(layer, (n_edited - 1) / max(1, layer)),
        times=n_batches,
    )


def value_phase(model: Model, work: Workload, call: Call) -> None:
    """MEMIT's values of all requests, at the highest edited layer."""
    layer, mesh, R = work.layers[-1], model.mesh, work.templates
    n_parts, n = _target_parts(model, work)
    B = packing.round_up(n * (R + 1), mesh.shape["data"])
    letters = {"token_BT": "BT", "fact_position_B": "B", "request_B": "B"}
    sizes = {
        "B": (B,),
        "I": (n,),
        "Q": (n * R * TARGET.n_read,),
        "BT": (B, TARGET.prefix + TARGET.suffix),
    }
    shapes = {name: sizes[name.rsplit("_", 1)[1]] for name in PromptBatch._fields}
    rows = PromptBatch(
        **{
            name: activation(
                mesh, letters.get(name, "_"), shape, jnp.float32 if "weight" in name else jnp.int32
            )
            for name, shape in shapes.items()
        }
    )
    numbers = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in value_loop.NUMERIC_HYPERS}
    variant = value_loop.LossVariant(
        Site.RESIDUAL, max_correct_passes=None, reduce_nll_when_correct=False
    )
    given = LoopHints(work.steps - 1, len(work.layers) / model.config.L)
    call(
        value_loop.optimise_batch,
        model,
        rows,
        layer,
        numbers,
        TARGET,
        variant,
        given=given,
        times=n_parts,
    )


def second_moment_phase(model: Model, work: Workload, call: Call) -> None:
    """Second moments of one batch of texts at the edited layers."""
    config, E = model.config, len(work.layers)
    T = moment_length(model)
    rows = _text_rows(model, _n_rows(model, T), T)
    sums = collect.Sums(*(parameter(model.mesh, "EMF", (E, config.F, config.F)) for _ in range(2)))
    last = work.layers[-1]
    layer_E = jax.ShapeDtypeStruct((E,), jnp.int32)
    call(collect.add_batch, model, *rows, layer_E, sums, given=LoopHints(last + 1, E / (last + 1)))


def solve_phase(model: Model, work: Workload, call: Call) -> None:
    """The products of the solver with its whitener, in each edited layer; the solves as wide as the
    keys are the host's.
    """
    F, D, R, E = model.config.F, model.config.D, work.requests, len(work.layers)
    metric = KeyRegulariser(_whitener(model))
    key_FR, key_RF, value_RD = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((F, R), (R, F), (R, D))
    )
    white_MR = call(solving.whiten, metric.whitener_MF, key_FR, times=E)
    call(solving.product, _transposed(white_MR), white_MR, times=E)
    u_FR, _ = call(solving.unwhiten, metric, white_MR, None, times=E)
    call(solving.product, key_RF, u_FR, value_RD, times=E)


def load_phase(model: Model, work: Workload, call: Call) -> None:
    """Nothing runs: the weights lie where they were read to."""


def moment_length(model: Model) -> int:
    """The rows that second moments are gathered from: the model's positions, up to one batch."""
    return min(model.config.P, packing.BATCH_TOKENS)


def _weights(model: Model, work: Workload) -> int:
    return device_bytes(model.base)


def whitener_bytes(model: Model, work: Workload) -> int:
    """The whiteners of all edited layers, on one device."""
    return len(work.layers) * device_bytes(_whitener(model))


def _all_but_one_whitener(model: Model, work: Workload) -> int:
    return device_bytes((model.base, model.overlay)) + (len(work.layers) - 1) * device_bytes(
        _whitener(model)
    )


def _of_texts(length: Callable[[Model, Workload], int]) -> Callable[[Model, Workload], str]:
    def about(model: Model, work: Workload) -> str:
        T = length(model, work)
        return f"{_n_rows(model, T)} rows of {T} tokens"

    return about


PHASES = (
    Phase("load", load_phase, _weights, lambda model, work: "the stored weights"),
    Phase(
        "keys",
        key_phase,
        whitener_bytes,
        lambda model, work: f"{work.requests} requests in {work.templates} templates",
    ),
    Phase(
        "target",
        value_phase,
        whitener_bytes,
        lambda model, work: (
            f"{work.requests} requests in {work.templates} templates, {work.steps} steps"
        ),
    ),
    Phase(
        "solve",
        solve_phase,
        _all_but_one_whitener,
        lambda model, work: f"{work.requests} keys in {len(work.layers)} layers",
    ),
    Phase(
        "perplexity", perplexity_phase, whitener_bytes, _of_texts(lambda model, work: work.length)
    ),
    Phase(
        "perplexity, all layers",
        whole_perplexity_phase,
        whitener_bytes,
        _of_texts(lambda model, work: work.length),
    ),
    Phase(
        "second moments",
        second_moment_phase,
        lambda model, work: 0,
        _of_texts(lambda model, work: moment_length(model)),
    ),
)


def _text_rows(model: Model, B: int, T: int) -> list[Any]:
    """Tokens, positions and segments."""
    return [activation(model.mesh, "BT", (B, T))] * 3


def _n_rows(model: Model, length: int) -> int:
    return model.mesh.shape["data"] * max(1, packing.BATCH_TOKENS // length)


def _question_rows(model: Model, work: Workload) -> tuple[int, int, int]:
    """Batches, rows and their tokens, as `observe._pack` makes them of questions of one length."""
    n_data = model.mesh.shape["data"]
    T = (
        packed_prompts.KEY_ROW_TOKENS
        if work.requests >= packed_prompts.MANY_REQUESTS
        else QUESTION_TOKENS
    )
    n_rows = (work.templates + 1) * -(-work.requests // (T // QUESTION_TOKENS))
    n_batches = -(-n_rows // (packed_prompts.ROWS_PER_BATCH * n_data))
    return n_batches, n_data * -(-n_rows // (n_batches * n_data)), T


def _target_parts(model: Model, work: Workload) -> tuple[int, int]:
    """In how many parts the requests are optimised, and how many in each."""
    most = value.requests_per_batch(model, TARGET, work.templates, work.layers[-1])
    n_parts = -(-work.requests // most)
    return n_parts, -(-work.requests // n_parts)


def _whitener(model: Model) -> Any:
    return parameter(model.mesh, "MF", (model.config.F, model.config.F))


def _transposed(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """An array's transpose, whose pieces stay where they are."""
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        spec = (*sharding.spec, *[None] * (2 - len(sharding.spec)))
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec[::-1]))
    return jax.ShapeDtypeStruct(array.shape[::-1], array.dtype, sharding=sharding)
