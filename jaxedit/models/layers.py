"""Running part of a network: layers lo..hi, any positions, with or without cached keys and values.

This replaces hooks. A vector is added between two segments; an MLP key is read with `run_layer`; a
prefix's keys and values are collected once and given to later calls. Layers are indexed inside the
loop, never sliced as `a[l:]`, which would copy the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxedit import axes
from jaxedit.mesh import constrain, shard_batch
from jaxedit.models.decoder import (
    AttentionContext,
    Block,
    EmbedAndHead,
    definition,
    module_paths,
    normalise,
)
from jaxedit.models.model import Model


def block_at(model: Model, layer) -> Block:
    """One layer's block, its weights gathered over `data` (they are stored split over both mesh
    axes).
    """

    def take(name: str) -> jax.Array:
        w = lax.dynamic_index_in_dim(model.base[name], layer, 0, keepdims=False)
        return constrain(model.mesh, axes.PARAMETERS[name][1:], w)

    return _build(model, Block, take)


def embedding_and_head(model: Model) -> EmbedAndHead:
    """The embedding, final norm and head."""
    return _build(
        model,
        EmbedAndHead,
        lambda name: constrain(model.mesh, axes.PARAMETERS[name], model.base[name]),
    )


def _build(model: Model, module, array_of):
    paths = module_paths(model.config, module)
    state = nnx.from_flat_state(
        [(tuple(name.split("/")), nnx.Param(array_of(name))) for name in paths]
    )
    return nnx.merge(definition(model.config, module), state)


def embed(model: Model, token_BT, position_BT) -> jax.Array:
    """Tokens to the residual stream before the first layer, float32 [B, T, D]."""
    return constrain(
        model.mesh, "BTD", embedding_and_head(model).embed_tokens(token_BT, position_BT)
    )


def run_layer(
    model: Model, h_BTD, attending: AttentionContext, layer
) -> tuple[jax.Array, jax.Array]:
    """One layer: the residual stream after it and its MLP key [B, T, F]."""
    h_BTD, key_BTF, _ = block_at(model, layer)(
        h_BTD, attending, kv_of_layer(attending, layer), model.overlay, layer
    )
    return constrain(model.mesh, "BTD", h_BTD), key_BTF


def run_layer_at_positions(
    model: Model, h_BTD, attending: AttentionContext, layer, at
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One layer whose MLP runs at some positions only: there the residual stream after it, the
    MLP's key and its output.

    Args:
      model: with its edits.
      h_BTD: the residual stream before the layer.
      attending: as everywhere.
      layer: which.
      at: (row_Q, column_Q), the positions.

    Returns:
      [Q, D], [Q, F] and [Q, D].
    """
    block, config = block_at(model, layer), model.config
    normed_BTD = normalise(config, block.attn, h_BTD)
    attn_BTD, _ = block.attn(normed_BTD, attending, kv_of_layer(attending, layer))
    mid_QD = (h_BTD + attn_BTD)[at]
    read_QD = h_BTD[at] if config.parallel else mid_QD
    normed_QD = normed_BTD[at] if config.shared_norm else normalise(config, block.mlp, read_QD)
    key_Q1F = block.mlp.key(normed_QD[:, None])
    value_QD = block.mlp.value(key_Q1F, model.overlay, layer)[:, 0]
    return mid_QD + value_QD, key_Q1F[:, 0], value_QD


def run_layers(model: Model, h_BTD, attending: AttentionContext, lo, hi) -> jax.Array:
    """Layers lo..hi-1 on the residual stream.

    `lo` and `hi` may be traced, so one compilation serves every segment; as Python integers they
    make the loop differentiable. In reverse mode only products are kept: a layer's slice of the
    weights is taken again."""

    def body(layer, h):
        out, _, _ = block_at(model, layer)(
            h, attending, kv_of_layer(attending, layer), model.overlay, layer
        )
        return constrain(model.mesh, "BTD", out)

    if isinstance(lo, int) and isinstance(hi, int):
        body = jax.checkpoint(body, policy=jax.checkpoint_policies.dots_saveable)
    return lax.fori_loop(lo, hi, body, h_BTD)


def run_layers_with_kv(model: Model, h_BTD, attending: AttentionContext, lo, hi):
    """As `run_layers`, and also returns the keys and values (k_LBKTH, v_LBKTH) that later calls can
    attend to.

    Layers outside lo..hi-1 hold zeros.
    """
    B, T, _ = h_BTD.shape
    empty = jnp.zeros((model.config.L, B, model.config.K, T, model.config.H), jnp.float32)

    def body(layer, carry):
        h, k_LBKTH, v_LBKTH = carry
        h, _, (k, v) = block_at(model, layer)(
            h, attending, kv_of_layer(attending, layer), model.overlay, layer
        )
        at = functools.partial(lax.dynamic_update_index_in_dim, index=layer, axis=0)
        return constrain(model.mesh, "BTD", h), at(k_LBKTH, k), at(v_LBKTH, v)

    h_BTD, k_LBKTH, v_LBKTH = lax.fori_loop(lo, hi, body, (h_BTD, empty, empty))
    return h_BTD, (k_LBKTH, v_LBKTH)


def kv_of_layer(attending: AttentionContext, layer):
    """One layer's part of the cached keys and values, if there are any."""
    if attending.cache is None:
        return None
    return tuple(
        lax.dynamic_index_in_dim(part, layer, 0, keepdims=False) for part in attending.cache
    )


def causal_attention(
    position_BT: jax.Array, segment_BT: jax.Array | None = None
) -> AttentionContext:
    """Attention to the same and earlier positions, within a segment where rows hold several texts."""
    T = position_BT.shape[1]
    mask_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (position_BT.shape[0], T, T))
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
    """float32 logits [B, T, V] of token rows; nothing is added to the tokens.

    Raises:
      ValueError: where the rows are not a rectangle of known tokens, or longer than a model's
        learned positions.
    """
    token_BT = np.asarray(tokens_BT)
    if (
        token_BT.ndim != 2
        or not np.issubdtype(token_BT.dtype, np.integer)
        or token_BT.shape[1] == 0
    ):
        raise ValueError(
            f"tokens_BT must be integers [B, T], got {token_BT.dtype} {token_BT.shape}"
        )
    model.config.check_length(token_BT.shape[1], "a row of tokens")
    if token_BT.min() < 0 or token_BT.max() >= model.config.V:
        raise ValueError(
            f"tokens must be from 0 to {model.config.V - 1}, got {token_BT.min()} to {token_BT.max()}"
        )
    return _logits(model, shard_batch(model.mesh, "BT", token_BT.astype(np.int32)))
