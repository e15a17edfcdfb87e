"""Log-probabilities of given tokens, for many texts at once.

Texts are packed into rows of equal length with segment masks and restarted positions, so hardly
anything is computed for padding; the head goes over the vocabulary in chunks, so no [T, V] array is
ever kept."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers
from jaxedit.models.model import Model
from jaxedit.models.ops import Overlay
from jaxedit.models.packing import Packed

HEAD_WIDTH = 4096  # vocabulary entries a device whose logits are held at once
CPU_HEAD_WIDTH = 256  # ... on a CPU, so that its cache holds them
PREFILL_BYTES = 2**30  # how much residual stream a device keeps between calls


class PrefilledTexts(NamedTuple):
    """Packed texts with the residual stream before a layer: what edits from there on do not change
    is computed once.
    """

    packed: Packed
    layer: int
    hidden_G: list[
        jax.Array | None
    ]  # float32 [B, T, D] of each batch; None where they would take more than BEGUN_BYTES
    embedding: jax.Array | None  # of the model they belong to


class TokenLosses(NamedTuple):
    """For each text, for its tokens after the first: the loss in nats and whether the token was the
    most likely one.
    """

    nll_nats: list[np.ndarray]
    is_argmax: list[np.ndarray]


def prefill(model: Model, packed: Packed, layer: int) -> PrefilledTexts:
    """Runs the layers below `layer` of the model without its edits, for later calls of `score`.

    Raises:
      ValueError: on a layer that the model lacks.
    """
    if not 0 <= layer < model.config.L:
        raise ValueError(
            f"layer {layer} does not exist: {model.metadata.source} has layers 0 to {model.config.L - 1}"
        )
    hidden_G: list[jax.Array | None] = [None] * len(packed.token_GBT)
    left = PREFILL_BYTES if layer else 0  # before the first layer there is nothing to keep
    for g, token_BT in enumerate(packed.token_GBT):
        left -= 4 * token_BT.size * model.config.D // model.mesh.shape["data"]
        if left < 0:
            break
        hidden_G[g] = prefill_batch(
            dataclasses.replace(model, overlay=Overlay({}, {})),
            *batch_to_device(model, packed, g),
            layer,
        )
    return PrefilledTexts(packed, layer, hidden_G, model.base["embed/tokens"])


def tile_batches(begun: PrefilledTexts, times: int) -> PrefilledTexts:
    """The same texts several times in each batch: the k-th ones in group k, numbered from k times
    their number on.
    """
    packed = begun.packed
    batches = []
    for token_BT, position_BT, segment_BT, _ in zip(*packed[:4], strict=True):
        group_B = np.arange(times, dtype=np.int32).repeat(len(token_BT))
        token_BT, position_BT, segment_BT = (
            np.tile(array, (times, 1)) for array in (token_BT, position_BT, segment_BT)
        )
        segment_BT = np.where(
            segment_BT > 0, segment_BT + group_B[:, None] * packed.n_texts, 0
        ).astype(np.int32)
        batches.append((token_BT, position_BT, segment_BT, group_B))
    many = Packed(*map(list, zip(*batches, strict=True)), n_texts=times * packed.n_texts)
    return begun._replace(
        packed=many,
        hidden_G=[h if h is None else jnp.tile(h, (times, 1, 1)) for h in begun.hidden_G],
    )


def token_losses(
    model: Model,
    texts: Packed | PrefilledTexts,
    model_of: Callable[[np.ndarray], Model] | None = None,
) -> TokenLosses:
    """The loss of every token given those before it in its text.

    Args:
      model: for all texts.
      texts: packed, or begun with this model.
      model_of: the groups of a batch's rows -> the model for this batch, where it is another for
        each.

    Raises:
      ValueError: where what was begun is another model's, or the model has edits below its layer.
    """
    begun = (
        texts
        if isinstance(texts, PrefilledTexts)
        else PrefilledTexts(texts, 0, [None] * len(texts.token_GBT), None)
    )
    packed = begun.packed
    nll_nats: list[np.ndarray] = [np.zeros(0)] * packed.n_texts
    is_argmax: list[np.ndarray] = [np.zeros(0, bool)] * packed.n_texts
    for g, segment_BT in enumerate(packed.segment_GBT):
        its_model = model if model_of is None else model_of(packed.group_GB[g])
        if begun.embedding is not None:
            _check_prefilled(its_model, begun)
        scored = token_losses_of_batch(
            its_model, *batch_to_device(model, packed, g), begun.hidden_G[g], begun.layer
        )
        nll_BT, argmax_BT = jax.device_get(scored)
        for text in np.unique(segment_BT[segment_BT > 0]) - 1:
            row, columns = np.nonzero(segment_BT == text + 1)
            nll_nats[text] = nll_BT[row[0], columns[:-1]].astype(np.float64)
            is_argmax[text] = argmax_BT[row[0], columns[:-1]]
    return TokenLosses(nll_nats, is_argmax)


def _check_prefilled(model: Model, begun: PrefilledTexts) -> None:
    if model.base["embed/tokens"] is not begun.embedding:
        raise ValueError("these texts were begun with another model; prepare them again")
    slots = [*model.overlay.slot.values(), *(rows.slot_L for rows in model.overlay.rows.values())]
    edited = [int(l) for slot_L in slots for l in np.flatnonzero(np.asarray(slot_L) >= 0)]
    if min(edited, default=begun.layer) < begun.layer:
        raise ValueError(
            f"these texts were begun below layer {begun.layer}, the model has edits at layer {min(edited)}"
        )


def batch_to_device(model: Model, packed: Packed, g: int) -> list[jax.Array]:
    """Tokens, positions and segments of one batch on the devices."""
    return [
        shard_batch(model.mesh, "BT", a[g])
        for a in (packed.token_GBT, packed.position_GBT, packed.segment_GBT)
    ]


@jax.jit
def prefill_batch(model: Model, token_BT, position_BT, segment_BT, layer):
    """The residual stream of packed rows before `layer` [B, T, D]."""
    return run_layers(
        model,
        embed(model, token_BT, position_BT),
        causal_attention(position_BT, segment_BT),
        0,
        layer,
    )


@jax.jit
def token_losses_of_batch(model: Model, token_BT, position_BT, segment_BT, h_BTD, layer):
    """At every position the loss of the next token of the row, and whether that token is the
    argmax.
    """
    if h_BTD is None:
        h_BTD, layer = embed(model, token_BT, position_BT), 0
    h_BTD = run_layers(
        model, h_BTD, causal_attention(position_BT, segment_BT), jnp.int32(layer), model.config.L
    )
    return replicate(model.mesh, next_token_losses(model, h_BTD, jnp.roll(token_BT, -1, axis=1)))


def next_token_losses(model: Model, h_BTD, target_BT) -> tuple[jax.Array, jax.Array]:
    """-log p(target) in nats [B, T] and target == argmax [B, T].

    The vocabulary goes by in chunks (HEAD_WIDTH) a device under a running log-sum-exp: no [T, V]
    array is kept, and the products stay large. The last chunk overlaps the one before; its repeated
    columns are masked."""
    network = embedding_and_head(model)
    x_BTD = network.final_norm(h_BTD)
    shards = model.mesh.shape["model"] if model.config.V % model.mesh.shape["model"] == 0 else 1
    per_shard = model.config.V // shards
    on_cpu = model.mesh.devices.flat[0].platform == "cpu"
    width = min(CPU_HEAD_WIDTH if on_cpu else HEAD_WIDTH, per_shard)

    def chunk(c, carry):
        highest_BT, total_BT, chosen_BT = carry
        first = jnp.minimum(c * width, per_shard - width)
        logits_BTMW = network.unembed_slice(x_BTD, shards, first, width)
        column_MW = first + jnp.arange(width) + per_shard * jnp.arange(shards)[:, None]
        is_target = column_MW == target_BT[..., None, None]
        chosen_BT = jnp.maximum(
            chosen_BT, jnp.max(jnp.where(is_target, logits_BTMW, -jnp.inf), (-2, -1))
        )
        logits_BTMW = jnp.where(first + jnp.arange(width) >= c * width, logits_BTMW, -jnp.inf)
        higher_BT = jnp.maximum(highest_BT, jnp.max(logits_BTMW, (-2, -1)))
        total_BT *= jnp.exp(highest_BT - higher_BT)
        return (
            higher_BT,
            total_BT + jnp.sum(jnp.exp(logits_BTMW - higher_BT[..., None, None]), (-2, -1)),
            chosen_BT,
        )

    lowest_BT = jnp.full(target_BT.shape, jnp.finfo(jnp.float32).min)
    carry = (lowest_BT, jnp.zeros(target_BT.shape), lowest_BT)
    highest_BT, total_BT, chosen_BT = jax.lax.fori_loop(0, -(-per_shard // width), chunk, carry)
    nll_BT = highest_BT + jnp.log(total_BT) - chosen_BT
    return nll_BT, (chosen_BT == highest_BT) & jnp.isfinite(nll_BT)
