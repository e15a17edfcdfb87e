"""The terms of the loss that a value is optimised for; `jaxedit.solving.value` has the equation."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxedit.mesh import constrain, platform
from jaxedit.models.layers import embedding_and_head, run_layer_at_positions, run_layers
from jaxedit.models.model import Model
from jaxedit.solving.prefill import PrefillState, change_of_output
from jaxedit.solving.prompt_batch import PromptBatch
from jaxedit.solving.site import Site


class LossTerms(NamedTuple):
    """The loss of I requests by its terms, and what a step of the optimisation needs besides.

    Attributes:
      total_I: the loss.
      nll_I: mean over templates and target tokens of -log p, in nats; without its factor.
      kl_I: kl_factor KL(p_delta || p_0).
      decay_I: v_weight_decay sum_J |delta| / |init|^2.
      is_missed_I: whether some target token is not the likeliest one in some template.
      n_said_I: target tokens that are the likeliest one, in all templates but the first.
      initial_IV: log p_0, what the KL term compares with.
    """

    total_I: jax.Array
    nll_I: jax.Array
    kl_I: jax.Array
    decay_I: jax.Array
    is_missed_I: jax.Array
    n_said_I: jax.Array
    initial_IV: jax.Array


def value_loss(
    model: Model,
    batch: PromptBatch,
    layer: int,
    site: Site,
    prefilled: PrefillState,
    init_norm_JI,
    hyper: Mapping[str, jax.Array],
    delta_JID,
    initial_IV,
    is_first,
    nll_factor_I,
) -> tuple[jax.Array, LossTerms]:
    """Compute the sum of the requests' losses, and the loss of each by its terms.

    Args:
      model: with the edits so far.
      batch: the rows.
      layer: the edited one.
      site: what the vectors are added to.
      prefilled: the part of the pass that the vectors do not change.
      init_norm_JI: |init|.
      hyper: kl_factor and v_weight_decay.
      delta_JID: the vectors.
      initial_IV: log p_0 of the first pass; not used in it.
      is_first: whether this is the first pass.
      nll_factor_I: the weight of the target's term.
    """
    # target loss
    nll_I, is_missed_I, n_said_I, logp_IV = _score_targets(
        model, batch, layer, site, prefilled, delta_JID
    )

    # essence KL: p_0 is what the first pass finds, whose vectors are zero
    initial_IV = jnp.where(is_first, jax.lax.stop_gradient(logp_IV), initial_IV)
    kl_I = hyper["kl_factor"] * jnp.sum(jnp.exp(logp_IV) * (logp_IV - initial_IV), axis=-1)

    # weight decay
    relative_JI = norm(delta_JID) / init_norm_JI**2
    decay_I = hyper["v_weight_decay"] * jnp.sum(relative_JI, axis=0)

    total_I = nll_factor_I * nll_I + kl_I + decay_I
    terms = LossTerms(total_I, nll_I, kl_I, decay_I, is_missed_I, n_said_I, initial_IV)
    return jnp.sum(total_I), terms


def _score_targets(
    model: Model,
    batch: PromptBatch,
    layer: int,
    site: Site,
    prefilled: PrefillState,
    delta_JID,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Run the suffixes with the vectors added.

    Returns:
      nll_I, is_missed_I and n_said_I of `LossTerms`, and log p [I, V] behind the KL prompt.
    """
    # The vectors at the fact's token, as they arrive after the edited layer.
    added_JBD = delta_JID[:, batch.request_B]
    change_BD = change_of_output(model, layer, site, prefilled.at_fact, added_JBD)
    h_BUD = prefilled.h_BUD.at[:, 0].add(change_BD)

    # The layers above, the last one's MLP only where the loss reads: the positions before target
    # tokens, then the KL prompts' fact tokens, which are at offset 0 of their rows.
    last, attn_context = model.config.L - 1, prefilled.attn_context
    h_BUD = constrain(model.mesh, "BTD", h_BUD)
    # On GPUs a loop over layers would copy each one's weights and saved products.
    on_gpu = platform(model.mesh) == "gpu"
    h_BUD = run_layers(model, h_BUD, attn_context, layer + 1, last, unrolled=on_gpu)
    row_Q = jnp.concatenate([batch.read_row_Q, batch.kl_row_I])
    offset_Q = jnp.pad(batch.read_offset_Q, (0, len(batch.kl_row_I)))
    read_QD = run_layer_at_positions(model, h_BUD, attn_context, last, (row_Q, offset_Q))[0]
    logp_QV = jax.nn.log_softmax(embedding_and_head(model).unembed(read_QD[None])[0])
    n_read, n_requests = batch.read_row_Q.shape[0], delta_JID.shape[1]
    target_logp_QV, kl_logp_IV = logp_QV[:n_read], logp_QV[n_read:]

    # -log p of the target's tokens, weighted and summed by request.
    request_Q = batch.request_B[batch.read_row_Q]
    target_Q1 = batch.read_target_Q[:, None]
    chosen_Q = jnp.take_along_axis(target_logp_QV, target_Q1, axis=1)[:, 0]
    nll_I = jax.ops.segment_sum(-chosen_Q * batch.read_weight_Q, request_Q, n_requests)

    # Whether any of them is not the likeliest token, and how many are outside the first template;
    # positions of weight 0 are padding.
    is_likeliest_Q, is_real_Q = chosen_Q >= jnp.max(target_logp_QV, axis=1), batch.read_weight_Q > 0
    is_missed_Q = (~is_likeliest_Q & is_real_Q).astype(jnp.int32)
    is_missed_I = jax.ops.segment_max(is_missed_Q, request_Q, n_requests) > 0
    is_first_Q = batch.read_row_Q == batch.first_row_I[request_Q]
    is_said_Q = (is_likeliest_Q & is_real_Q & ~is_first_Q).astype(jnp.int32)
    n_said_I = jax.ops.segment_sum(is_said_Q, request_Q, n_requests)
    return nll_I, is_missed_I, n_said_I, kl_logp_IV


def project(x_JID, largest_JI) -> jax.Array:
    """Shorten the vectors that are longer than the largest length allowed."""
    norm_JI = norm(x_JID)
    shrunk_JI = largest_JI / jnp.where(norm_JI == 0, 1, norm_JI)
    return jnp.where(norm_JI > largest_JI, shrunk_JI, 1.0)[..., None] * x_JID


def norm(x_JID) -> jax.Array:
    """Compute lengths whose gradient at zero is zero, as torch's is."""
    square_JI = jnp.sum(x_JID**2, axis=-1)
    positive_JI = jnp.where(square_JI > 0, square_JI, 1.0)
    return jnp.where(square_JI > 0, jnp.sqrt(positive_JI), 0.0)
