"""Log-probabilities of given tokens, for many texts at once.

Texts are packed into rows of equal length with segment masks and restarted positions, so hardly
anything is computed for padding; the head goes over the vocabulary in chunks, so no [T, V] array is
ever kept.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import platform, replicate, shard_batch
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers
from jaxedit.models.model import Model
from jaxedit.models.ops import GPU_OPTIONS, Overlay
from jaxedit.models.packing import Packed
from jaxedit.rounding import ceil_div

HEAD_WIDTH = 4096  # vocabulary entries a device whose logits are held at once
CPU_HEAD_WIDTH = 256  # ... on a CPU, so that its cache holds them
PREFILL_BYTES = 2**30  # how much residual stream a device keeps between calls


class PrefilledTexts(NamedTuple):
    """Packed texts with the residual stream before a layer, which later edits do not change.

    Attributes:
      packed: the texts.
      layer: the layers below it are computed.
      hidden_G: float32 [B, T, D] of each batch; None where they would take more than PREFILL_BYTES.
      embedding: of the model they belong to; None where there is none to compare with.
    """

    packed: Packed
    layer: int
    hidden_G: list[jax.Array | None]
    embedding: jax.Array | None


class TokenLosses(NamedTuple):
    """The losses of each text's tokens after the first.

    Attributes:
      nll_nats: for each text -log p of each token given those before it, float64.
      is_argmax: for each text whether each token was the most likely one.
    """

    nll_nats: list[np.ndarray]
    is_argmax: list[np.ndarray]


def prefill(model: Model, packed: Packed, layer: int) -> PrefilledTexts:
    """Run the layers below `layer` of the unedited model, for later calls of `token_losses`.

    Raises:
      ValueError: on a layer that the model lacks.
    """
    if not 0 <= layer < model.config.L:
        raise ValueError(
            f"layer {layer} does not exist: "
            f"{model.metadata.source} has layers 0 to {model.config.L - 1}"
        )
    unedited = dataclasses.replace(model, overlay=Overlay({}, {}))
    hidden_G: list[jax.Array | None] = [None] * len(packed.token_GBT)
    left = PREFILL_BYTES if layer else 0  # before the first layer there is nothing to keep
    for g, token_BT in enumerate(packed.token_GBT):
        left -= 4 * token_BT.size * model.config.D // model.mesh.shape["data"]
        if left < 0:
            break
        hidden_G[g] = prefill_batch(unedited, *batch_to_device(model, packed, g), layer)
    return PrefilledTexts(packed, layer, hidden_G, model.base["embed/tokens"])


def tile_batches(texts: PrefilledTexts, n_copies: int) -> PrefilledTexts:
    """Tile every batch `n_copies` times, for a model that differs from copy to copy.

    Copy k has group k, and its text i becomes text k * n_texts + i.
    """
    packed = texts.packed
    batches = []
    for token_BT, position_BT, segment_BT, _ in zip(*packed[:4], strict=True):
        group_B = np.arange(n_copies, dtype=np.int32).repeat(len(token_BT))
        tiled_BT = np.tile(segment_BT, (n_copies, 1))
        moved_BT = tiled_BT + group_B[:, None] * packed.n_texts
        segment_BT = np.where(tiled_BT > 0, moved_BT, 0).astype(np.int32)
        token_BT, position_BT = (np.tile(a, (n_copies, 1)) for a in (token_BT, position_BT))
        batches.append((token_BT, position_BT, segment_BT, group_B))
    tiled = Packed(*map(list, zip(*batches, strict=True)), n_texts=n_copies * packed.n_texts)
    hidden_G = [None if h is None else jnp.tile(h, (n_copies, 1, 1)) for h in texts.hidden_G]
    return texts._replace(packed=tiled, hidden_G=hidden_G)


def token_losses(
    model: Model,
    texts: Packed | PrefilledTexts,
    model_of: Callable[[np.ndarray], Model] | None = None,
) -> TokenLosses:
    """Compute the loss of every token given those before it in its text.

    Args:
      model: for all texts.
      texts: packed, or prefilled with this model.
      model_of: the groups of a batch's rows -> the model for this batch, where it is another for
        each.

    Raises:
      ValueError: where prefilled texts are another model's, or the model has edits below their
        layer.
    """
    if isinstance(texts, Packed):
        texts = PrefilledTexts(texts, 0, [None] * len(texts.token_GBT), None)
    packed = texts.packed
    nll_nats: list[np.ndarray] = [np.zeros(0)] * packed.n_texts
    is_argmax: list[np.ndarray] = [np.zeros(0, bool)] * packed.n_texts
    if model_of is None:
        check_prefilled(model, texts)
    for g, segment_BT in enumerate(packed.segment_GBT):
        batch_model = model
        if model_of is not None:
            batch_model = model_of(packed.group_GB[g])
            check_prefilled(batch_model, texts)
        batch = batch_to_device(model, packed, g)
        losses = _token_losses(batch_model, *batch, texts.hidden_G[g], texts.layer)
        nll_BT, is_argmax_BT = jax.device_get(losses)

        # Back from rows to texts. A text lies whole in one row; the loss that stands at its last
        # position is of what follows it in the row, and is left out.
        for text in np.unique(segment_BT[segment_BT > 0]) - 1:
            rows, columns = np.nonzero(segment_BT == text + 1)
            nll_nats[text] = nll_BT[rows[0], columns[:-1]].astype(np.float64)
            is_argmax[text] = is_argmax_BT[rows[0], columns[:-1]]
    return TokenLosses(nll_nats, is_argmax)


def lowest_layer(model: Model, layers: Iterable[int]) -> int:
    """Return the lowest of these layers and of those that the model has room for edits in."""
    slots = model.overlay.slot.values()
    edited = (layer for slot_L in slots for layer in np.flatnonzero(np.asarray(slot_L) >= 0))
    return min((*layers, *map(int, edited)))


def check_prefilled(model: Model, texts: PrefilledTexts) -> None:
    """Check that texts were prefilled with a model, below all of its edits.

    Raises:
      ValueError: where the model is another, or has edits in the layers that were computed.
    """
    if texts.embedding is None:
        return
    if model.base["embed/tokens"] is not texts.embedding:
        raise ValueError("these texts were prefilled with another model; prepare them again")
    per_row = (model.overlay.rows or {}).values()
    slots = [*model.overlay.slot.values(), *(edits.slot_L for edits in per_row)]
    edited = [l for slot_L in slots for l in np.flatnonzero(np.asarray(slot_L) >= 0)]
    lowest = min(map(int, edited), default=texts.layer)
    if lowest < texts.layer:
        raise ValueError(
            f"these texts were prefilled below layer {texts.layer}, "
            f"the model has edits at layer {lowest}"
        )


def batch_to_device(model: Model, packed: Packed, g: int) -> list[jax.Array]:
    """Put tokens, positions and segments of one batch on the devices."""
    arrays = packed.token_GBT, packed.position_GBT, packed.segment_GBT
    return [shard_batch(model.mesh, "BT", array[g]) for array in arrays]


@jax.jit
def prefill_batch(model: Model, token_BT, position_BT, segment_BT, layer) -> jax.Array:
    """Compute the residual stream of packed rows before `layer`, float32 [B, T, D]."""
    h_BTD = embed(model, token_BT, position_BT)
    return run_layers(model, h_BTD, causal_attention(position_BT, segment_BT), 0, layer)


@functools.partial(jax.jit, static_argnames="layer")
def token_losses_of_batch(
    model: Model, token_BT, position_BT, segment_BT, h_BTD, layer: int
) -> tuple[jax.Array, jax.Array]:
    """Compute at every position the loss of the row's next token, and whether it is the argmax.

    Args:
      model: with its edits.
      token_BT: packed rows.
      position_BT: each token's position in its text.
      segment_BT: which text it belongs to.
      h_BTD: the residual stream before `layer`, or None: from the first layer on.
      layer: the first to be run.

    Returns:
      Nats [B, T] and booleans [B, T].
    """
    if h_BTD is None:
        h_BTD, layer = embed(model, token_BT, position_BT), 0
    attn_context = causal_attention(position_BT, segment_BT)
    h_BTD = run_layers(model, h_BTD, attn_context, layer, model.config.L)
    return replicate(model.mesh, next_token_losses(model, h_BTD, jnp.roll(token_BT, -1, axis=1)))


# The same program with the options of GPUs, which may not be inside another one (a pmap, say).
_token_losses = jax.jit(
    token_losses_of_batch, static_argnames="layer", compiler_options=GPU_OPTIONS
)


def next_token_losses(model: Model, h_BTD, target_BT) -> tuple[jax.Array, jax.Array]:
    """Compute -log p(target) in nats [B, T] and target == argmax [B, T].

    The vocabulary goes by in chunks (HEAD_WIDTH) a device under a running log-sum-exp: no [T, V]
    array is kept, and the products stay large.
    """
    network = embedding_and_head(model)
    x_BTD = network.final_norm(h_BTD)

    # The vocabulary is split over the mesh axis `model` into Z shards; a chunk is W entries of
    # each, so that every device works on its own part.
    n_model = model.mesh.shape["model"]
    n_shards = n_model if model.config.V % n_model == 0 else 1
    per_shard = model.config.V // n_shards
    width = min(CPU_HEAD_WIDTH if platform(model.mesh) == "cpu" else HEAD_WIDTH, per_shard)

    def chunk(c, carry):
        highest_BT, total_BT, chosen_BT, first_BT = carry

        # The last chunk overlaps the one before, so that all have one width.
        first = jnp.minimum(c * width, per_shard - width)
        logits_BTZW = network.unembed_slice(x_BTD, n_shards, first, width)

        # The target's logit, where the target is in this chunk.
        entry_W = first + jnp.arange(width)
        entry_ZW = entry_W + per_shard * jnp.arange(n_shards)[:, None]
        is_target_BTZW = entry_ZW == target_BT[..., None, None]
        of_target_BTZW = jnp.where(is_target_BTZW, logits_BTZW, -jnp.inf)
        chosen_BT = jnp.maximum(chosen_BT, jnp.max(of_target_BTZW, (-2, -1)))

        # Entries that the chunk before has counted count no more.
        logits_BTZW = jnp.where(entry_W >= c * width, logits_BTZW, -jnp.inf)

        # The argmax is the first of the highest entries, as in greedy decoding: where a broken
        # model's logits are all equal, not every token is the likeliest.
        top_BT = jnp.max(logits_BTZW, (-2, -1))
        is_top_BTZW = logits_BTZW == top_BT[..., None, None]
        at_BT = jnp.min(jnp.where(is_top_BTZW, entry_ZW, model.config.V), (-2, -1))
        at_BT = jnp.where(top_BT == highest_BT, jnp.minimum(first_BT, at_BT), at_BT)
        first_BT = jnp.where(top_BT >= highest_BT, at_BT, first_BT)

        # Running log-sum-exp: the sum is of exp(logit - highest), rescaled where the highest grows.
        higher_BT = jnp.maximum(highest_BT, top_BT)
        total_BT *= jnp.exp(highest_BT - higher_BT)
        chunk_BT = jnp.sum(jnp.exp(logits_BTZW - higher_BT[..., None, None]), (-2, -1))
        return higher_BT, total_BT + chunk_BT, chosen_BT, first_BT

    lowest_BT = jnp.full(target_BT.shape, jnp.finfo(jnp.float32).min)
    carry = (lowest_BT, jnp.zeros(target_BT.shape), lowest_BT, jnp.zeros_like(target_BT))
    n_chunks = ceil_div(per_shard, width)
    highest_BT, total_BT, chosen_BT, first_BT = jax.lax.fori_loop(0, n_chunks, chunk, carry)
    nll_BT = highest_BT + jnp.log(total_BT) - chosen_BT
    return nll_BT, (first_BT == target_BT) & jnp.isfinite(nll_BT)
