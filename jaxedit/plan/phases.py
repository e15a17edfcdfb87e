"""The phases of a study as calls of the library's own jitted functions, on abstract arrays.

Each phase is a function of the model, the workload and `call`, which compiles what a phase would
run, notes what it costs, and returns shapes and shardings of the result for the next call. What a
program's text cannot say is given here: the trip counts of loops over layers with traced bounds,
and in how many of these layers the branch of edited ones is taken."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxedit.models import score
from jaxedit.models.model import Model
from jaxedit.needs import Need
from jaxedit.plan.count import LoopHints
from jaxedit.plan.floor import (
    key_floor,
    load_floor,
    perplexity_floor,
    second_moment_floor,
    solve_floor,
    value_floor,
    whole_perplexity_floor,
)
from jaxedit.plan.models import abstract_activation, abstract_parameter, device_bytes
from jaxedit.plan.workload import (
    PROMPT_TOKENS,
    SHARED_TOKENS,
    VALUE_SHAPE,
    Workload,
    count_text_rows,
    moment_tokens,
)
from jaxedit.rounding import ceil_div, round_up
from jaxedit.solving import keys, packed_prompts, value, value_loop
from jaxedit.solving import solve as solving
from jaxedit.solving.prompt_batch import PromptBatch
from jaxedit.solving.site import Site
from jaxedit.stats import collect

# (jitted function, *its arguments, hints=LoopHints(...), times=...) -> its result, abstract
Call = Callable[..., Any]


class Phase(NamedTuple):
    """A phase of a study.

    Attributes:
      name: what it is called in a plan.
      run: calls what it runs.
      floor: what any program would need for it.
      held_bytes: what lies on a device beside the arguments of what it runs.
      about: its size in words.
    """

    name: str
    run: Callable[[Model, Workload, Call], None]
    floor: Callable[[Model, Workload], Need]
    held_bytes: Callable[[Model, Workload], int]
    about: Callable[[Model, Workload], str]


def load_phase(model: Model, work: Workload, call: Call) -> None:
    """Run nothing: the weights lie where they were read to."""


def key_phase(model: Model, work: Workload, call: Call) -> None:
    """Compute the keys of all requests, in all templates and bare, at the highest edited layer."""
    layer, C, mesh = work.layers[-1], work.n_templates + 1, model.mesh
    n_edited = len(work.layers)
    # What the templates begin with, through layers 0 to `layer`.
    shared_CO = abstract_activation(mesh, "__", (C, SHARED_TOKENS))
    hints = LoopHints(layer + 1, n_edited / (layer + 1))
    cache = call(keys.prefill_shared, model, shared_CO, jnp.int32(layer), hints=hints)
    # The requests' own tokens, through layers 0 to `layer` - 1 and up to the key in the next one.
    n_batches, B, T = _prompt_rows(model, work)
    rows = _text_rows(model, B, T)
    n_shared_C = abstract_activation(mesh, "_", (C,))
    template_B = abstract_activation(mesh, "B", (B,))
    position_Q2 = jax.ShapeDtypeStruct((ceil_div(C * work.n_requests, n_batches), 2), jnp.int32)
    arguments = (cache, n_shared_C, *rows, template_B, position_Q2, jnp.int32(layer), "key")
    hints = LoopHints(layer, (n_edited - 1) / max(1, layer))
    call(keys.read_positions, model, *arguments, hints=hints, times=n_batches)


def value_phase(model: Model, work: Workload, call: Call) -> None:
    """Optimise MEMIT's values of all requests, at the highest edited layer."""
    layer, C = work.layers[-1], work.n_templates
    n_chunks, n_requests = _value_chunks(model, work)
    batch = _abstract_prompt_batch(model, n_requests, C)
    hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in value_loop.NUMERIC_HYPERS}
    variant = value_loop.LossVariant(
        Site.RESIDUAL, max_correct_passes=None, reduce_nll_when_correct=False
    )
    arguments = (batch, layer, hyper, VALUE_SHAPE, variant)
    hints = LoopHints(work.v_num_grad_steps - 1, len(work.layers) / model.config.L)
    call(value_loop.optimise_batch, model, *arguments, hints=hints, times=n_chunks)


def solve_phase(model: Model, work: Workload, call: Call) -> None:
    """Multiply the keys with the whitener and its transpose, in each edited layer.

    The systems of equations, as wide as the requests are many, are solved on the host."""
    F, D, R, E = model.config.F, model.config.D, work.n_requests, len(work.layers)
    whitener_MF = _whitener(model)
    key_FR, key_RF, value_RD = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((F, R), (R, F), (R, D))
    )
    white_MR = call(solving.whiten, whitener_MF, key_FR, times=E)
    call(solving.product, _transposed(white_MR), white_MR, times=E)
    u_FR, _ = call(solving.unwhiten, whitener_MF, white_MR, times=E)
    call(solving.product, key_RF, u_FR, value_RD, times=E)


def perplexity_phase(model: Model, work: Workload, call: Call) -> None:
    """Score texts after an edit, from the lowest edited layer on.

    The residual stream before that layer is kept."""
    lowest, L = work.layers[0], model.config.L
    rows = _text_rows(model, count_text_rows(model.mesh, work.row_tokens), work.row_tokens)
    shape = (*rows[0].shape, model.config.D)
    h_BTD = abstract_activation(model.mesh, "BTD", shape, jnp.float32)
    hints = LoopHints(L - lowest, len(work.layers) / (L - lowest))
    call(score.token_losses_of_batch, model, *rows, h_BTD, lowest, hints=hints)


def whole_perplexity_phase(model: Model, work: Workload, call: Call) -> None:
    """Score texts through all layers, as before the first edit and in edits of other layers."""
    rows = _text_rows(model, count_text_rows(model.mesh, work.row_tokens), work.row_tokens)
    hints = LoopHints(model.config.L, len(work.layers) / model.config.L)
    call(score.token_losses_of_batch, model, *rows, None, 0, hints=hints)


def second_moment_phase(model: Model, work: Workload, call: Call) -> None:
    """Add one batch of texts to the second moments of keys at the edited layers."""
    config, E, last = model.config, len(work.layers), work.layers[-1]
    T = moment_tokens(model.config)
    rows = _text_rows(model, count_text_rows(model.mesh, T), T)
    moment_EMF = abstract_parameter(model.mesh, "EMF", (E, config.F, config.F))
    layer_E = jax.ShapeDtypeStruct((E,), jnp.int32)
    sums = collect.Sums(moment_EMF, moment_EMF)
    hints = LoopHints(last + 1, E / (last + 1))
    call(collect.add_batch, model, *rows, layer_E, sums, hints=hints)


def whitener_bytes(model: Model, work: Workload) -> int:
    """Return what one device holds of the whiteners of all edited layers."""
    return len(work.layers) * device_bytes(_whitener(model))


def _weight_bytes(model: Model, work: Workload) -> int:
    return device_bytes(model.base)


def _bytes_beside_whitener(model: Model, work: Workload) -> int:
    """Return what lies beside one whitener: the model, and the other layers' whiteners."""
    others = (len(work.layers) - 1) * device_bytes(_whitener(model))
    return device_bytes((model.base, model.overlay)) + others


def _no_bytes(model: Model, work: Workload) -> int:
    return 0


def _about_load(model: Model, work: Workload) -> str:
    return "the stored weights"


def _about_keys(model: Model, work: Workload) -> str:
    return f"{work.n_requests} requests in {work.n_templates} templates"


def _about_values(model: Model, work: Workload) -> str:
    return f"{_about_keys(model, work)}, {work.v_num_grad_steps} steps"


def _about_solve(model: Model, work: Workload) -> str:
    return f"{work.n_requests} keys in {len(work.layers)} layers"


def _about_texts(model: Model, work: Workload) -> str:
    return f"{count_text_rows(model.mesh, work.row_tokens)} rows of {work.row_tokens} tokens"


def _about_moments(model: Model, work: Workload) -> str:
    T = moment_tokens(model.config)
    return f"{count_text_rows(model.mesh, T)} rows of {T} tokens"


PHASES = (
    Phase("load", load_phase, load_floor, _weight_bytes, _about_load),
    Phase("keys", key_phase, key_floor, whitener_bytes, _about_keys),
    Phase("values", value_phase, value_floor, whitener_bytes, _about_values),
    Phase("solve", solve_phase, solve_floor, _bytes_beside_whitener, _about_solve),
    Phase("perplexity", perplexity_phase, perplexity_floor, whitener_bytes, _about_texts),
    Phase(
        "perplexity, all layers",
        whole_perplexity_phase,
        whole_perplexity_floor,
        whitener_bytes,
        _about_texts,
    ),
    Phase("second moments", second_moment_phase, second_moment_floor, _no_bytes, _about_moments),
)


def _text_rows(model: Model, B: int, T: int) -> list[Any]:
    """Describe rows of texts: tokens, positions and segments."""
    return [abstract_activation(model.mesh, "BT", (B, T))] * 3


def _prompt_rows(model: Model, work: Workload) -> tuple[int, int, int]:
    """Return batches, rows and their tokens, as `pack_prompts` packs prompts of one length."""
    n_data = model.mesh.shape["data"]
    T = (
        packed_prompts.KEY_ROW_TOKENS
        if work.n_requests >= packed_prompts.MANY_REQUESTS
        else PROMPT_TOKENS
    )
    n_rows = (work.n_templates + 1) * ceil_div(work.n_requests, T // PROMPT_TOKENS)
    n_batches = ceil_div(n_rows, packed_prompts.rows_per_batch(model.mesh))
    return n_batches, n_data * ceil_div(n_rows, n_batches * n_data), T


def _value_chunks(model: Model, work: Workload) -> tuple[int, int]:
    """Return in how many chunks the requests are optimised, and how many are in each."""
    most = value.requests_per_batch(model, VALUE_SHAPE, work.n_templates, work.layers[-1])
    n_chunks = ceil_div(work.n_requests, most)
    return n_chunks, ceil_div(work.n_requests, n_chunks)


def _abstract_prompt_batch(model: Model, n_requests: int, n_templates: int) -> PromptBatch:
    """Describe the rows of requests: for each its templates and the prompt of the KL term."""
    mesh = model.mesh
    B = round_up(n_requests * (n_templates + 1), mesh.shape["data"])
    token_BT = abstract_activation(mesh, "BT", (B, VALUE_SHAPE.prefix + VALUE_SHAPE.suffix))
    row_B = abstract_activation(mesh, "B", (B,))
    row_I = abstract_activation(mesh, "_", (n_requests,))
    n_read = n_requests * n_templates * VALUE_SHAPE.n_read
    read_Q = abstract_activation(mesh, "_", (n_read,))
    return PromptBatch(
        token_BT=token_BT,
        fact_position_B=row_B,
        request_B=row_B,
        first_row_I=row_I,
        bare_row_I=row_I,
        kl_row_I=row_I,
        read_row_Q=read_Q,
        read_offset_Q=read_Q,
        read_target_Q=read_Q,
        read_weight_Q=abstract_activation(mesh, "_", (n_read,), jnp.float32),
    )


def _whitener(model: Model) -> Any:
    return abstract_parameter(model.mesh, "MF", (model.config.F, model.config.F))


def _transposed(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Describe an array's transpose, whose shards stay where they are."""
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        spec = (*sharding.spec, *[None] * (2 - len(sharding.spec)))
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec[::-1]))
    return jax.ShapeDtypeStruct(array.shape[::-1], array.dtype, sharding=sharding)
