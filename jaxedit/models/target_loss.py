"""The loss of target tokens in rows of tokens, in nats."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers
from jaxedit.models.model import Model


class TargetRows(NamedTuple):
    """Rows of tokens, and which of their predictions the loss reads.

    Attributes:
      token_BT: the rows, padded on the right.
      read_BQ: positions whose logits are read.
      target_BQ: the tokens that are to be predicted there.
      weight_BQ: their weights in the loss; 0: padding.
    """

    token_BT: Any
    read_BQ: Any
    target_BQ: Any
    weight_BQ: Any


def loss_above(model: Model, h_BTD, rows: TargetRows, lowest: int) -> jax.Array:
    """Compute the weighted sum of -log p(target) over the positions read.

    Args:
      model: with its edits.
      h_BTD: the residual stream before layer `lowest`, as `run_below` computes it.
      rows: on the devices.
      lowest: the lowest layer that a gradient is taken of.
    """
    attn_context = causal_attention(_positions(rows.token_BT))
    h_BTD = run_layers(model, h_BTD, attn_context, lowest, model.config.L)
    return loss_of_residual(model, h_BTD, rows)


def run_below(model: Model, token_BT, lowest: int):
    """Run the layers below the lowest that a gradient is taken of.

    Returns:
      The residual stream before layer `lowest` [B, T, D], a constant, and the attention's context.
    """
    position_BT = _positions(token_BT)
    attn_context = causal_attention(position_BT)
    h_BTD = run_layers(model, embed(model, token_BT, position_BT), attn_context, 0, lowest)
    return jax.lax.stop_gradient(h_BTD), attn_context


def _positions(token_BT) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)


def loss_of_residual(model: Model, h_BTD, rows: TargetRows) -> jax.Array:
    """Compute the loss from the residual stream after the last layer [B, T, D]."""
    read_BQD = jnp.take_along_axis(h_BTD, rows.read_BQ[..., None], axis=1)
    logp_BQV = jax.nn.log_softmax(embedding_and_head(model).unembed(read_BQD))
    chosen_BQ = jnp.take_along_axis(logp_BQV, rows.target_BQ[..., None], axis=2)[..., 0]
    return -jnp.sum(chosen_BQ * rows.weight_BQ)
