"""Running part of a network: layers lo..hi, any positions, with or without cached keys and values.

This replaces hooks. A vector is added between two segments; an MLP key is read with `run_layer`; a
prefix's keys and values are collected once and given to later calls. Layers are indexed inside the
loop, never sliced as `a[l:]`, which would copy the weights.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxedit import axes
from jaxedit.mesh import constrain, shard_batch
from jaxedit.models.attention import AttentionContext, KeysAndValues
from jaxedit.models.decoder import (
    Block,
    MLPInputs,
    Offsets,
    definition,
    module_paths,
)
from jaxedit.models.embed_and_head import EmbedAndHead
from jaxedit.models.model import Model
from jaxedit.models.norms import normalise, to_residual
from jaxedit.models.ops import KEPT_PRODUCT, split_by_edits


def block_at(model: Model, layer) -> Block:
    """Build one layer's block, its weights gathered over `data`.

    They are stored split over both mesh axes.
    """

    def weight_of_layer(name: str) -> jax.Array:
        w = lax.dynamic_index_in_dim(model.base[name], layer, 0, keepdims=False)
        return constrain(model.mesh, axes.PARAMETERS[name].removeprefix("L"), w)

    return _build(model, Block, weight_of_layer)


def embedding_and_head(model: Model) -> EmbedAndHead:
    """Build the embedding, final norm and head."""

    def weight(name: str) -> jax.Array:
        return constrain(model.mesh, axes.PARAMETERS[name], model.base[name])

    return _build(model, EmbedAndHead, weight)


def _build(model: Model, module, array_of):
    paths = module_paths(model.config, module)
    state = nnx.from_flat_state(
        [(tuple(name.split("/")), nnx.Param(array_of(name))) for name in paths]
    )
    return nnx.merge(definition(model.config, module), state)


def embed(model: Model, token_BT, position_BT) -> jax.Array:
    """Embed tokens: the residual stream before the first layer, float32 [B, T, D]."""
    h_BTD = embedding_and_head(model).embed_tokens(token_BT, position_BT)
    return constrain(model.mesh, "BTD", h_BTD)


def run_layer(
    model: Model, h_BTD, attn_context: AttentionContext, layer, offset: Offsets | None = None
) -> tuple[jax.Array, MLPInputs]:
    """Run one layer.

    Args:
      model: with its edits.
      h_BTD: the residual stream before the layer.
      attn_context: positions and mask.
      layer: which.
      offset: added to the outputs of the MLP's weights: weight -> [B, T, out].

    Returns:
      The residual stream after the layer [B, T, D], and what the MLP's weights read.
    """
    h_BTD, inputs, _ = _run_block(model, h_BTD, attn_context, layer, offset)
    return constrain(model.mesh, "BTD", h_BTD), inputs


def _run_block(
    model: Model, h_BTD, attn_context: AttentionContext, layer, offset: Offsets | None = None
) -> tuple[jax.Array, MLPInputs, KeysAndValues]:
    """Run one layer: the residual stream after it, its MLP's inputs, its own keys and values."""
    block = block_at(model, layer)
    cached_kv = kv_of_layer(attn_context, layer)
    return block(h_BTD, attn_context, cached_kv, model.overlay, layer, offset)


def run_layer_at_positions(
    model: Model, h_BTD, attn_context: AttentionContext, layer, at
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run one layer whose MLP is computed at some positions only.

    Args:
      model: with its edits.
      h_BTD: the residual stream before the layer.
      attn_context: as everywhere.
      layer: which.
      at: (row_Q, column_Q), the positions.

    Returns:
      At these positions: the residual stream after the layer [Q, D], the MLP's key [Q, F] and its
      value [Q, D], the MLP's output before a post-norm.
    """
    block, config = block_at(model, layer), model.config

    # Attention in whole rows, since every position may be attended to.
    normed_BTD = normalise(config, block.attn, h_BTD)
    attn_BTD, _ = block.attn(normed_BTD, attn_context, kv_of_layer(attn_context, layer), layer)
    attn_BTD = to_residual(config, block.attn, attn_BTD)

    # From here on only the positions asked for. What the MLP's norm reads and whether there is one
    # is as drawn in `Block`.
    mid_QD = (h_BTD + attn_BTD)[at]
    read_QD = h_BTD[at] if config.parallel else mid_QD
    normed_QD = normed_BTD[at] if config.shared_norm else normalise(config, block.mlp, read_QD)

    # The MLP as a key-value memory. It takes rows of positions: here each row is one position.
    key_Q1F = block.mlp.key(normed_QD[:, None], model.overlay, layer)
    value_QD = block.mlp.value(key_Q1F, model.overlay, layer)[:, 0]
    added_QD = to_residual(config, block.mlp, value_QD)
    return mid_QD + added_QD, key_Q1F[:, 0], value_QD


def run_layers(
    model: Model, h_BTD, attn_context: AttentionContext, lo, hi, unrolled: bool = False
) -> jax.Array:
    """Run layers lo..hi-1 on the residual stream [B, T, D].

    `lo` and `hi` may be traced, so one compilation serves every segment; as Python integers they
    make the loop differentiable. In reverse mode only products are kept: a layer's slice of the
    weights is taken again.

    Args:
      model: with its edits.
      h_BTD: the residual stream before layer `lo`.
      attn_context: positions and mask.
      lo: the first layer.
      hi: the end.
      unrolled: whether each layer between Python integers is a program of its own: slow to
        compile, but nothing is copied into and out of arrays of all layers.
    """

    def step(model: Model, layer, h_BTD):
        h_BTD, _, _ = _run_block(model, h_BTD, attn_context, layer)
        return constrain(model.mesh, "BTD", h_BTD)

    policies = jax.checkpoint_policies
    saved = policies.save_from_both_policies(
        policies.dots_saveable, policies.save_only_these_names(KEPT_PRODUCT)
    )
    if unrolled:
        for layer in range(lo, hi):
            of_layer = jax.checkpoint(functools.partial(step, model, layer), policy=saved)
            h_BTD = of_layer(h_BTD)
        return h_BTD
    return _over_layers(model, lo, hi, step, h_BTD, saved)


def _over_layers(model: Model, lo, hi, step: Callable[..., Any], carry, saved=None) -> Any:
    """Run `step(model, layer, carry)` for layers lo..hi-1.

    Between Python integers layers run in loops of layers that are edited alike, where none has to
    ask whether it is edited.

    Args:
      model: with its edits; a step gets it with those of its layer.
      lo: the first layer, possibly traced.
      hi: the end, possibly traced.
      step: returns the carry after a layer.
      carry: before the first.
      saved: what the gradient keeps of a step between Python integers; None: everything.
    """
    if not (isinstance(lo, int) and isinstance(hi, int)):
        return lax.fori_loop(lo, hi, functools.partial(step, model), carry)
    for first, end, overlay in split_by_edits(model.overlay, lo, hi):
        body = functools.partial(step, dataclasses.replace(model, overlay=overlay))
        if saved is not None:
            body = jax.checkpoint(body, policy=saved)
        carry = lax.fori_loop(first, end, body, carry)
    return carry


def run_layers_with_kv(
    model: Model, h_BTD, attn_context: AttentionContext, lo, hi
) -> tuple[jax.Array, KeysAndValues]:
    """Run layers lo..hi-1, and collect the keys and values that later calls can attend to.

    Returns:
      The residual stream [B, T, D], and (k_LBKTH, v_LBKTH); layers outside lo..hi-1 hold zeros.
    """
    B, T, _ = h_BTD.shape
    empty_LBKTH = jnp.zeros((model.config.L, B, model.config.K, T, model.config.H), jnp.float32)

    def step(model: Model, layer, carry):
        h_BTD, k_LBKTH, v_LBKTH = carry
        h_BTD, _, (k_BKTH, v_BKTH) = _run_block(model, h_BTD, attn_context, layer)
        put = functools.partial(lax.dynamic_update_index_in_dim, index=layer, axis=0)
        return constrain(model.mesh, "BTD", h_BTD), put(k_LBKTH, k_BKTH), put(v_LBKTH, v_BKTH)

    carry = (h_BTD, empty_LBKTH, empty_LBKTH)
    h_BTD, k_LBKTH, v_LBKTH = _over_layers(model, lo, hi, step, carry)
    return h_BTD, (k_LBKTH, v_LBKTH)


def kv_of_layer(attn_context: AttentionContext, layer) -> KeysAndValues | None:
    """Return one layer's part of the cached keys and values, if there are any."""
    if attn_context.cache is None:
        return None
    k_LBKSH, v_LBKSH = attn_context.cache
    return (
        lax.dynamic_index_in_dim(k_LBKSH, layer, 0, keepdims=False),
        lax.dynamic_index_in_dim(v_LBKSH, layer, 0, keepdims=False),
    )


def causal_attention(
    position_BT: jax.Array, segment_BT: jax.Array | None = None
) -> AttentionContext:
    """Let each position attend to itself and earlier ones.

    Args:
      position_BT: the positions.
      segment_BT: which text each position belongs to, where rows hold several; attention then stays
        within a text.
    """
    B, T = position_BT.shape
    mask_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    if segment_BT is not None:
        mask_BTS &= segment_BT[:, :, None] == segment_BT[:, None, :]
    return AttentionContext(position_BT, mask_BTS)


@jax.jit
def _logits(model: Model, token_BT):
    position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
    h_BTD = embed(model, token_BT, position_BT)
    h_BTD = run_layers(model, h_BTD, causal_attention(position_BT), 0, model.config.L)
    return constrain(model.mesh, "BTV", embedding_and_head(model).unembed(h_BTD))


def logits(model: Model, tokens_BT) -> jax.Array:
    """Compute float32 logits [B, T, V] of token rows; nothing is added to the tokens.

    Raises:
      ValueError: where the rows are not a rectangle of known tokens, or longer than a model's
        learned positions.
    """
    token_BT = np.asarray(tokens_BT)
    are_integers = np.issubdtype(token_BT.dtype, np.integer)
    if token_BT.ndim != 2 or not are_integers or token_BT.shape[1] == 0:
        raise ValueError(
            f"tokens_BT must be integers [B, T], got {token_BT.dtype} {token_BT.shape}"
        )
    model.config.check_length(token_BT.shape[1], "a row of tokens")
    lowest, highest, V = token_BT.min(), token_BT.max(), model.config.V
    if lowest < 0 or highest >= V:
        raise ValueError(f"tokens must be from 0 to {V - 1}, got {lowest} to {highest}")
    return _logits(model, shard_batch(model.mesh, "BT", token_BT.astype(np.int32)))
