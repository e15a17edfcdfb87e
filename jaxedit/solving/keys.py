"""The keys of requests at a layer's MLP, and the values that their bare prompts hold.

Layers are run up to the one asked for, and in it the MLP only of the fact's token. The
prompts are packed (`jaxedit.solving.packed_prompts`): what all of them begin with in a template is
run once.
"""

import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.attention import AttentionContext
from jaxedit.models.layers import (
    causal_attention,
    embed,
    run_layer_at_positions,
    run_layers,
    run_layers_with_kv,
)
from jaxedit.models.model import Model
from jaxedit.solving.packed_prompts import PackedPrompts
from jaxedit.solving.site import Site

ACTIVATIONS = ("residual", "key", "mlp")  # as `run_layer_at_positions` returns them


def compute_keys(model: Model, packed: PackedPrompts, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the keys of requests at a layer's MLP.

    Returns:
      Keys pooled over the templates, and keys of the bare prompts, both [I, F].
    """
    pooled_IF, bare_IF = np.zeros((2, packed.n_requests, model.config.F), np.float32)
    batches = range(len(packed.token_GBT))
    for key_QF, template_Q, request_Q in _read(model, packed, layer, "key", batches):
        np.add.at(pooled_IF, request_Q, key_QF * packed.weight_C[template_Q, None])
        is_bare_Q = template_Q == packed.bare
        bare_IF[request_Q[is_bare_Q]] = key_QF[is_bare_Q]
    return pooled_IF, bare_IF


def compute_values(
    model: Model, packed: PackedPrompts, layer: int, site: Site = Site.RESIDUAL
) -> np.ndarray:
    """Compute the values [I, D] that the bare prompts hold at their facts' tokens after a layer.

    Args:
      model: with the edits so far.
      packed: the requests.
      layer: which.
      site: the residual stream, or the MLP's output.
    """
    value_ID = np.zeros((packed.n_requests, model.config.D), np.float32)
    has_bare_G = np.any(packed.place_GQ4[:, :, 2] == packed.bare, axis=1)
    batches = np.flatnonzero(has_bare_G)
    for value_QD, template_Q, request_Q in _read(model, packed, layer, site.activation, batches):
        is_bare_Q = template_Q == packed.bare
        value_ID[request_Q[is_bare_Q]] = value_QD[is_bare_Q]
    return value_ID


def _read(
    model: Model, packed: PackedPrompts, layer: int, activation: str, batches: Iterable[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each batch an activation at its last tokens, their templates and requests."""
    shared_CO = shard_batch(model.mesh, "__", packed.shared_CO)
    n_shared_C = shard_batch(model.mesh, "_", packed.n_shared_C)
    cache = prefill_shared(model, shared_CO, jnp.int32(layer))
    for g in batches:
        arrays_GBT = (packed.token_GBT, packed.offset_GBT, packed.segment_GBT)
        rows_BT = (shard_batch(model.mesh, "BT", array[g]) for array in arrays_GBT)
        template_B = shard_batch(model.mesh, "B", packed.template_GB[g])
        place_Q4 = packed.place_GQ4[g]
        read_Q2 = np.maximum(place_Q4[:, :2], 0)  # padding reads the first token, to be dropped
        read = read_positions(
            model,
            cache,
            n_shared_C,
            *rows_BT,
            template_B,
            read_Q2,
            jnp.int32(layer),
            activation,
        )
        is_real_Q = place_Q4[:, 3] >= 0
        _, _, template_Q, request_Q = place_Q4[is_real_Q].T
        yield np.asarray(read)[is_real_Q], template_Q, request_Q


@jax.jit
def prefill_shared(model: Model, token_CO, layer) -> tuple[jax.Array, jax.Array]:
    """Compute the keys and values of the templates' shared tokens, in layers 0 to `layer`."""
    position_CO = jnp.broadcast_to(jnp.arange(token_CO.shape[1]), token_CO.shape)
    h_COD = embed(model, token_CO, position_CO)
    return run_layers_with_kv(model, h_COD, causal_attention(position_CO), 0, layer + 1)[1]


@functools.partial(jax.jit, static_argnames="activation")
def read_positions(
    model: Model,
    cache: tuple[jax.Array, jax.Array],
    n_shared_C,
    token_BT,
    offset_BT,
    segment_BT,
    template_B,
    place_Q2,
    layer,
    activation: str,
) -> jax.Array:
    """Read an activation at positions of rows that attend to their template's shared tokens.

    Args:
      model: with the edits so far.
      cache: keys and values of the shared tokens (`prefill_shared`).
      n_shared_C: how many they are.
      token_BT: the rows.
      offset_BT: positions, counted from the end of the shared tokens.
      segment_BT: which tokens of a row belong together.
      template_B: the template of each row.
      place_Q2: row and column of the positions.
      layer: which.
      activation: one of ACTIVATIONS.

    Returns:
      [Q, D], or [Q, F] of "key".
    """
    # A row's own tokens, in segments, behind the shared ones.
    n_shared_B1 = n_shared_C[template_B][:, None]
    position_BT = n_shared_B1 + offset_BT
    own_mask_BTS = causal_attention(position_BT, segment_BT).mask_BTS

    # The shared tokens of a row's template; behind them is padding.
    O = cache[0].shape[3]
    is_shared_BO = jnp.arange(O) < n_shared_B1
    shared_mask_BTO = jnp.broadcast_to(is_shared_BO[:, None], (*token_BT.shape, O))
    cache_by_row = jax.tree.map(lambda kv_LCKOH: kv_LCKOH[:, template_B], cache)

    mask_BTS = jnp.concatenate([shared_mask_BTO, own_mask_BTS], axis=-1)
    position_BO = jnp.broadcast_to(jnp.arange(O), is_shared_BO.shape)
    attn_context = AttentionContext(position_BT, mask_BTS, cache_by_row, position_BO)
    h_BTD = run_layers(model, embed(model, token_BT, position_BT), attn_context, 0, layer)
    at = (place_Q2[:, 0], place_Q2[:, 1])
    activations = run_layer_at_positions(model, h_BTD, attn_context, layer, at)
    return replicate(model.mesh, activations[ACTIVATIONS.index(activation)])
