"""The loop that optimises the values of one batch of requests, compiled as a whole.

A step runs the suffixes with the vectors added, then

    gradient     of target loss + essence KL + weight decay (`jaxedit.solving.value_loss`)
    stop         each request by itself, before the update of the pass that ended it
    update       Adam
    projection   |delta| <= clamp_norm_factor |init|

Equations, papers and what the methods do differently: `jaxedit.solving.value`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxedit.mesh import replicate
from jaxedit.models.model import Model
from jaxedit.models.ops import GPU_OPTIONS
from jaxedit.solving.prefill import prefill
from jaxedit.solving.prompt_batch import PaddedShape, PromptBatch
from jaxedit.solving.site import Site
from jaxedit.solving.value_loss import LossTerms, project, value_loss

STOP_LOSS = 5e-2  # a loss below it ends the optimisation
CORRECT_NLL_SHARE = 0.1  # PMET: of nll_loss_factor, behind a pass in which the target is said
CORRECT_STOP_KL = 1e-2  # PMET: the KL term at which such a pass is the last
# Hyper-parameters that are arguments of the compiled loop, so that other values compile nothing.
NUMERIC_HYPERS = (
    "v_num_grad_steps",
    "v_lr",
    "v_weight_decay",
    "kl_factor",
    "clamp_norm_factor",
    "nll_loss_factor",
)


class LossVariant(NamedTuple):
    """What the compiled loop is specialised for, besides shapes.

    Attributes:
      site: which activation `init` is, and whether a second vector is optimised along with delta.
      max_correct_passes: the loop also stops at the k-th correct pass (ENCORE's -prob_cutoff);
        None: at STOP_LOSS alone.
      reduce_nll_when_correct: the target loss weighs less after a pass in which every target token
        is the likeliest in every template (PMET).
      correct_tokens: how many target tokens, of all templates but the first, are the likeliest in a
        correct pass; None: all of all templates.
    """

    site: Site
    max_correct_passes: int | None
    reduce_nll_when_correct: bool
    correct_tokens: int | None = None


class LoopState(NamedTuple):
    """The carry of the optimisation's loop.

    Attributes:
      step: forward passes so far.
      delta_JID: the vectors; the second one, if any, is the attention's.
      adam: Adam's moments.
      initial_IV: log p_0 behind the KL prompts, from the first pass on.
      nll_factor_I: the weight of the target loss in the next pass.
      is_active_I: which requests are still optimised.
      n_steps_I: forward passes of each request.
      n_correct_I: those that were correct.
    """

    step: jax.Array
    delta_JID: jax.Array
    adam: Any
    initial_IV: jax.Array
    nll_factor_I: jax.Array
    is_active_I: jax.Array
    n_steps_I: jax.Array
    n_correct_I: jax.Array


@functools.partial(
    jax.jit, static_argnames=("layer", "shape", "variant"), compiler_options=GPU_OPTIONS
)
def optimise_batch(
    model: Model,
    batch: PromptBatch,
    layer: int,
    hyper: Mapping[str, jax.Array],
    shape: PaddedShape,
    variant: LossVariant,
) -> dict[str, jax.Array]:
    """Optimise the values of one batch of requests; compiled once for each shape and variant.

    Args:
      model: with the edits so far.
      batch: the rows, on the devices.
      layer: the vector is added to this layer's output.
      hyper: NUMERIC_HYPERS as float32 scalars.
      shape: of the batch.
      variant: of the loss.

    Returns:
      By field of `OptimisedValues` what it says of requests, and key_BF and value_BD of all rows.
    """
    # `init` of each vector, at the first template's row of each request
    prefilled = prefill(model, batch, layer, shape)
    at_fact = prefilled.at_fact
    site_BD = at_fact.residual_BD if variant.site == Site.RESIDUAL else at_fact.value_BD
    init_ID = site_BD[batch.first_row_I]
    inits = [init_ID]
    if variant.site == Site.MLP_WITH_ATTENTION:
        inits.append(at_fact.attn_BD[batch.first_row_I])
    init_norm_JI = jnp.linalg.norm(jnp.stack(inits), axis=-1)

    # all updates, then one more pass for the terms of the vectors that are returned
    loss = functools.partial(
        value_loss, model, batch, layer, variant.site, prefilled, init_norm_JI, hyper
    )
    adam = optax.adam(hyper["v_lr"])

    def is_unfinished(state: LoopState) -> jax.Array:
        return (state.step < hyper["v_num_grad_steps"] - 1) & jnp.any(state.is_active_I)

    def take_step(state: LoopState) -> LoopState:
        return _take_step(state, loss, adam, hyper, init_norm_JI, variant)

    zero_JID = jnp.zeros((len(inits), *init_ID.shape))
    start = _start(zero_JID, adam, hyper, model.config.V)
    end = jax.lax.while_loop(is_unfinished, take_step, start)
    _, terms = loss(end.delta_JID, end.initial_IV, end.step == 0, end.nll_factor_I)
    values = {
        "delta_ID": end.delta_JID[0],
        "init_ID": init_ID,
        "key_BF": at_fact.key_BF,
        "value_BD": at_fact.value_BD,
        "nll_I": terms.nll_I,
        "kl_I": terms.kl_I,
        "decay_I": terms.decay_I,
        "n_steps_I": end.n_steps_I + end.is_active_I,  # with the pass above
    }
    return replicate(model.mesh, values)


def _start(zero_JID, adam: Any, hyper: Mapping[str, jax.Array], V: int) -> LoopState:
    n_requests = zero_JID.shape[1]
    return LoopState(
        step=jnp.int32(0),
        delta_JID=zero_JID,
        adam=adam.init(zero_JID),
        initial_IV=jnp.zeros((n_requests, V)),
        nll_factor_I=jnp.full(n_requests, hyper["nll_loss_factor"]),
        is_active_I=jnp.ones(n_requests, bool),
        n_steps_I=jnp.zeros(n_requests, jnp.int32),
        n_correct_I=jnp.zeros(n_requests, jnp.int32),
    )


def _take_step(
    state: LoopState,
    loss: Callable[..., tuple[jax.Array, LossTerms]],
    adam: Any,
    hyper: Mapping[str, jax.Array],
    init_norm_JI,
    variant: LossVariant,
) -> LoopState:
    """Take one step of the optimisation: a pass, its gradient, and Adam's update."""
    # target loss + essence KL + weight decay, and the gradient of their sum
    is_first = state.step == 0
    (_, terms), gradient_JID = jax.value_and_grad(loss, has_aux=True)(
        state.delta_JID, state.initial_IV, is_first, state.nll_factor_I
    )
    n_steps_I = state.n_steps_I + state.is_active_I
    is_correct_I = ~terms.is_missed_I
    if variant.correct_tokens is not None:
        is_correct_I = terms.n_said_I == variant.correct_tokens
    n_correct_I = state.n_correct_I + is_correct_I

    # stop: before this step's update, each request by itself
    is_active_I = state.is_active_I & (terms.total_I >= STOP_LOSS)
    if variant.max_correct_passes is not None:
        is_active_I &= n_correct_I < variant.max_correct_passes
    nll_factor_I = state.nll_factor_I
    if variant.reduce_nll_when_correct:
        is_active_I &= terms.is_missed_I | (terms.kl_I > CORRECT_STOP_KL)
        share_I = jnp.where(terms.is_missed_I, 1.0, CORRECT_NLL_SHARE)
        nll_factor_I = hyper["nll_loss_factor"] * share_I

    # update and projection
    change_JID, adam_state = adam.update(gradient_JID, state.adam)
    largest_JI = hyper["clamp_norm_factor"] * init_norm_JI
    moved_JID = project(state.delta_JID + change_JID, largest_JI)
    return LoopState(
        step=state.step + 1,
        delta_JID=jnp.where(is_active_I[:, None], moved_JID, state.delta_JID),
        adam=adam_state,
        initial_IV=terms.initial_IV,
        nll_factor_I=nll_factor_I,
        is_active_I=is_active_I,
        n_steps_I=n_steps_I,
        n_correct_I=n_correct_I,
    )
