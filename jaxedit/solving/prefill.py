"""The part of the forward pass that an added vector does not change, run once for an optimisation.

A vector at the fact's token changes only that position and those after it, and only layers above
the edited one. So all positions are run once up to the edited layer, and above it the prefixes,
whose keys and values the suffixes attend to at every step. `jaxedit.solving.prompt_batch` has a
drawing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxedit.models.attention import AttentionContext
from jaxedit.models.layers import (
    block_at,
    causal_attention,
    embed,
    run_layers,
    run_layers_with_kv,
)
from jaxedit.models.model import Model
from jaxedit.models.norms import normalise, to_residual
from jaxedit.solving.prompt_batch import PaddedShape, PromptBatch
from jaxedit.solving.site import Site


class FactTokenActivations(NamedTuple):
    """What the edited layer holds at each row's fact token, before any vector is added.

    Attributes:
      key_BF: the MLP's key.
      value_BD: the MLP's output, W k, before a post-norm.
      residual_BD: the residual stream after the layer.
      attn_BD: the attention's output, before a post-norm.
      after_attn_BD: the residual stream with the attention's output.
    """

    key_BF: jax.Array
    value_BD: jax.Array
    residual_BD: jax.Array
    attn_BD: jax.Array
    after_attn_BD: jax.Array


class PrefillState(NamedTuple):
    """What every step of the optimisation starts from.

    Attributes:
      h_BUD: the residual stream of the suffixes after the edited layer.
      attn_context: what the suffixes attend to in the layers above: prefixes and themselves.
      at_fact: what the edited layer holds at the fact's tokens.
    """

    h_BUD: jax.Array
    attn_context: AttentionContext
    at_fact: FactTokenActivations


def prefill(model: Model, batch: PromptBatch, layer: int, shape: PaddedShape) -> PrefillState:
    """Run the layers up to the edited one, and the prefixes through those above it.

    Args:
      model: with the edits so far.
      batch: the rows.
      layer: the edited one.
      shape: of the batch.
    """
    # All rows up to the edited layer. Its attention runs a second time by itself, for its output.
    B, T = batch.token_BT.shape
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    attn_context = causal_attention(position_BT)
    h_BTD = embed(model, batch.token_BT, position_BT)
    before_BTD = run_layers(model, h_BTD, attn_context, 0, layer)
    block = block_at(model, layer)
    h_BTD, inputs, _ = block(before_BTD, attn_context, None, model.overlay, layer)
    normed_BTD = normalise(model.config, block.attn, before_BTD)
    attn_BTD, _ = block.attn(normed_BTD, attn_context, None, layer)
    after_attn_BTD = before_BTD + to_residual(model.config, block.attn, attn_BTD)

    # Key, value and the other activations at the fact's tokens.
    fact_B11 = batch.fact_position_B[:, None, None]
    key_B1F, residual_B1D, attn_B1D, after_attn_B1D = (
        jnp.take_along_axis(array, fact_B11, axis=1)
        for array in (inputs.key_BTF, h_BTD, attn_BTD, after_attn_BTD)
    )
    value_B1D = block.mlp.value(key_B1F, model.overlay, layer)
    activations = (key_B1F, value_B1D, residual_B1D, attn_B1D, after_attn_B1D)
    at_fact = FactTokenActivations(*(array[:, 0] for array in activations))

    # The prefixes above the edited layer: their keys and values. A row's prefix ends before its
    # fact's token; what lies behind that is masked.
    position_BO = position_BT[:, : shape.prefix]
    h_BOD = h_BTD[:, : shape.prefix]
    _, cache = run_layers_with_kv(
        model, h_BOD, causal_attention(position_BO), layer + 1, model.config.L
    )
    is_prefix_BO = position_BO < batch.fact_position_B[:, None]
    sees_prefix_BUO = jnp.broadcast_to(is_prefix_BO[:, None], (B, shape.suffix, shape.prefix))

    # The suffixes, moved so that every row's begins at offset 0.
    position_BU = jnp.asarray(batch.fact_position_B)[:, None] + jnp.arange(shape.suffix)
    inside_BU1 = jnp.minimum(position_BU, T - 1)[..., None]
    h_BUD = jnp.take_along_axis(h_BTD, inside_BU1, axis=1)
    sees_suffix_BUS = causal_attention(position_BU).mask_BTS
    mask_BUS = jnp.concatenate([sees_prefix_BUO, sees_suffix_BUS], axis=-1)
    attn_context = AttentionContext(position_BU, mask_BUS, cache, position_BO)
    return PrefillState(h_BUD, attn_context, at_fact)


def change_of_output(
    model: Model, layer: int, site: Site, at_fact: FactTokenActivations, added_JBD
) -> jax.Array:
    """Compute what vectors added at the fact's tokens change of the layer's output [B, D].

    A vector for the residual stream is that change. One for the MLP's or the attention's output
    reaches the residual stream as the module's output does: in most families as it is, else through
    a post-norm (`jaxedit.models.norms`). In sequential blocks attention's passes through the
    layer's MLP besides, in parallel ones not.

    Args:
      model: with the edits so far.
      layer: the edited one.
      site: what the vectors are added to.
      at_fact: what the layer holds without them.
      added_JBD: the vectors.
    """
    if site == Site.RESIDUAL:
        return added_JBD[0]
    config, block = model.config, block_at(model, layer)

    def change_of(module, out_BD, added_BD) -> jax.Array:
        if not config.post_norm:
            return added_BD * config.residual_scale
        return to_residual(config, module, out_BD + added_BD) - to_residual(config, module, out_BD)

    if site == Site.MLP:
        return change_of(block.mlp, at_fact.value_BD, added_JBD[0])
    of_attn_BD = change_of(block.attn, at_fact.attn_BD, added_JBD[1])
    if config.parallel:
        return of_attn_BD + change_of(block.mlp, at_fact.value_BD, added_JBD[0])

    def mlp(h_BD, added_BD) -> jax.Array:
        x_B1D = normalise(config, block.mlp, h_BD[:, None])
        key_B1F = block.mlp.key(x_B1D, model.overlay, layer)
        value_BD = block.mlp.value(key_B1F, model.overlay, layer)[:, 0]
        return to_residual(config, block.mlp, value_BD + added_BD)

    after_attn_BD = at_fact.after_attn_BD
    of_mlp_BD = mlp(after_attn_BD + of_attn_BD, added_JBD[0]) - mlp(after_attn_BD, 0.0)
    return of_attn_BD + of_mlp_BD
