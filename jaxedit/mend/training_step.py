"""A step of MEND's training: edits side by side, their losses, and Adam's step (2110.11309, 3.3).

    L = cedit * NLL(the edit's target | the edited model)
      + cloc * KL(the unedited model || the edited one), the mean over a locality text's tokens

Each row of a batch has an edit of its own (`PerRowEdits`), and its locality text is read with the
same one. The factors are those of the unedited model and constants for the gradient.

As released, each edit's gradient divided by `accumulate_bs` is added up before a step. There the
step sizes also get no step with `lr_lr`: the code sets their gradients to zero before it; here they
do, as the paper says.
"""

import dataclasses
import functools
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxedit.edits.edit import Array
from jaxedit.mend.hypernetwork import (
    STEP_SIZES,
    Hypernetwork,
    add_to_moments,
    transform_factors,
)
from jaxedit.mend.records import Batch
from jaxedit.mend.training_config import StepSettings
from jaxedit.models.layers import causal_attention, embedding_and_head, run_layers
from jaxedit.models.model import Model
from jaxedit.models.ops import PerRowEdits, Slots
from jaxedit.models.output_gradients import Factors, factors_above

MOST_NON_FINITE = 100  # steps in a row that are left out


class BatchSums(NamedTuple):
    """Sums over the edits of a batch.

    Attributes:
      n: how many edits they are.
      total_loss: the loss of the settings.
      edit_loss: NLL of the edits' targets.
      locality_loss: KL on the locality texts.
      n_successes: edits whose target decoding reproduces.
      nll_before: of the locality texts' tokens, by the unedited model.
      nll_after: by the edited one.
      n_tokens: how many tokens these are.
    """

    n: Array
    total_loss: Array
    edit_loss: Array
    locality_loss: Array
    n_successes: Array
    nll_before: Array
    nll_after: Array
    n_tokens: Array


def make_optimiser(settings: StepSettings) -> optax.GradientTransformation:
    """Make Adam with one learning rate for the networks and another for the step sizes."""

    def label(parameters: dict[str, jax.Array]) -> dict[str, str]:
        return {name: name if name == STEP_SIZES else "networks" for name in parameters}

    adams: dict[Hashable, optax.GradientTransformation] = {
        "networks": optax.adam(settings.lr),
        STEP_SIZES: optax.adam(settings.lr_lr),
    }
    adam = optax.multi_transform(adams, label)
    clipped = optax.chain(optax.clip_by_global_norm(settings.grad_clip), adam)
    return optax.apply_if_finite(clipped, max_consecutive_errors=MOST_NON_FINITE)


@functools.partial(jax.jit, static_argnames="settings")
def train_step(
    model: Model,
    hypernetwork: Hypernetwork,
    optimiser_state: optax.OptState,
    batch: Batch,
    settings: StepSettings,
) -> tuple[Hypernetwork, optax.OptState, BatchSums]:
    """Let the moments see a batch's factors, then take a step of Adam."""
    factors = factors_of(model, hypernetwork, batch)
    hypernetwork = add_to_moments(hypernetwork, factors)

    def loss_of(parameters):
        trained = dataclasses.replace(hypernetwork, parameters=parameters)
        measured = measure(model, trained, batch, factors, settings)
        return measured.total_loss / measured.n, measured

    gradient, measured = jax.grad(loss_of, has_aux=True)(hypernetwork.parameters)
    optimiser = make_optimiser(settings)
    move, optimiser_state = optimiser.update(gradient, optimiser_state, hypernetwork.parameters)
    parameters = optax.apply_updates(hypernetwork.parameters, move)
    return dataclasses.replace(hypernetwork, parameters=parameters), optimiser_state, measured


@functools.partial(jax.jit, static_argnames="settings")
def validation_step(
    model: Model, hypernetwork: Hypernetwork, batch: Batch, settings: StepSettings
) -> BatchSums:
    """Measure a batch's edits; nothing is learned."""
    factors = factors_of(model, hypernetwork, batch)
    return measure(model, hypernetwork, batch, factors, settings)


def factors_of(model: Model, hypernetwork: Hypernetwork, batch: Batch) -> Factors:
    """Compute the factors of the gradients of a batch's edits, each row's of its own loss."""
    attn_context = causal_attention(_positions(batch.edit_h_BTD))
    places = hypernetwork.layout.places
    return factors_above(model, places, batch.edit_h_BTD, attn_context, batch.edits)[1]


def measure(
    model: Model, hypernetwork: Hypernetwork, batch: Batch, factors: Factors, settings: StepSettings
) -> BatchSums:
    """Edit the model with each row's own update, and measure the edits and their locality."""
    edited = with_row_updates(model, hypernetwork, factors)
    lowest = min(layer for _, layer in hypernetwork.layout.places)

    # The edit: the loss of its target, and whether decoding reproduces it.
    rows = batch.edits
    h_BTD = _run_above(edited, batch.edit_h_BTD, lowest)
    h_BQD = jnp.take_along_axis(h_BTD, rows.read_BQ[..., None], axis=1)
    logp_BQV = jax.nn.log_softmax(embedding_and_head(edited).unembed(h_BQD))
    edit_loss_B = jnp.sum(_chosen(logp_BQV, rows.target_BQ) * -rows.weight_BQ, axis=1)
    is_right_BQ = jnp.argmax(logp_BQV, axis=-1) == rows.target_BQ
    is_success_B = jnp.all(is_right_BQ | (rows.weight_BQ == 0), axis=1)

    # The locality text: KL at every token, and the loss of its tokens but for the first.
    logp_BTV = _log_probabilities(edited, batch.locality_h_BTD, lowest)
    base_logp_BTV = jax.lax.stop_gradient(_log_probabilities(model, batch.locality_h_BTD, lowest))
    position_BT, n_tokens_B1 = _positions(batch.locality_h_BTD), batch.n_tokens_B[:, None]
    is_own_BT = position_BT < n_tokens_B1
    kl_BT = jnp.sum(jnp.exp(base_logp_BTV) * (base_logp_BTV - logp_BTV), axis=-1)
    kl_B = jnp.sum(kl_BT * is_own_BT, axis=1) / jnp.maximum(batch.n_tokens_B, 1)
    is_scored_BT = (position_BT < n_tokens_B1 - 1) * batch.weight_B[:, None]
    next_BT = jnp.roll(batch.locality_BT, -1, axis=1)

    total_loss_B = settings.cedit * edit_loss_B + settings.cloc * kl_B
    return BatchSums(
        n=jnp.sum(batch.weight_B),
        total_loss=jnp.sum(total_loss_B * batch.weight_B),
        edit_loss=jnp.sum(edit_loss_B * batch.weight_B),
        locality_loss=jnp.sum(kl_B * batch.weight_B),
        n_successes=jnp.sum(is_success_B * batch.weight_B),
        nll_before=-jnp.sum(_chosen(base_logp_BTV, next_BT) * is_scored_BT),
        nll_after=-jnp.sum(_chosen(logp_BTV, next_BT) * is_scored_BT),
        n_tokens=jnp.sum(is_scored_BT),
    )


def with_row_updates(model: Model, hypernetwork: Hypernetwork, factors: Factors) -> Model:
    """Return the model with the update of each row's own factors in that row of a batch."""
    updates = transform_factors(hypernetwork, factors)
    rows = {}
    for weight in dict.fromkeys(weight for weight, _ in updates):
        layers = sorted(layer for at, layer in updates if at == weight)
        slots = {layer: e for e, layer in enumerate(layers)}
        u_EBTF = jnp.stack([updates[weight, layer][0] for layer in layers])
        v_EBRD = jnp.stack([updates[weight, layer][1] for layer in layers])
        slot_L = Slots(slots.get(layer, -1) for layer in range(model.config.L))
        rows[weight] = PerRowEdits(jnp.swapaxes(u_EBTF, 2, 3), v_EBRD, slot_L)
    return dataclasses.replace(model, overlay=model.overlay._replace(rows=rows))


def _positions(h_BTD) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(h_BTD.shape[1]), h_BTD.shape[:2])


def _run_above(model: Model, h_BTD, lowest: int) -> jax.Array:
    attn_context = causal_attention(_positions(h_BTD))
    return run_layers(model, h_BTD, attn_context, lowest, model.config.L)


def _log_probabilities(model: Model, h_BTD, lowest: int) -> jax.Array:
    h_BTD = _run_above(model, h_BTD, lowest)
    return jax.nn.log_softmax(embedding_and_head(model).unembed(h_BTD))


def _chosen(logp_BQV, token_BQ) -> jax.Array:
    return jnp.take_along_axis(logp_BQV, token_BQ[..., None], axis=-1)[..., 0]
