"""What the loss of texts depends on at weights that will be edited: inputs and gradients.

Of a text d with n_d scored tokens let L_d be the mean loss a token, x_t what a weight reads at a
token t and y_t what it puts out. Read are x_t, g_t = dL_d / dy_t, and g~_t: the gradient of the
summed loss of labels drawn from the model's own distribution of the next token, at each position
by itself, over sqrt(n_d). Scores at different positions are uncorrelated, so one backward pass a
draw estimates the whole Gauss-Newton form of L_d, cross terms between tokens included.

`jaxedit.edits.predicted_change` predicts with it what an edit does, `jaxedit.solving.harm` lessens
that.
"""

import functools
import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layer, run_layers
from jaxedit.models.model import Model
from jaxedit.models.output_gradients import Places
from jaxedit.models.score import PrefilledTexts, batch_to_device, check_prefilled
from jaxedit.timing import host_bytes

N_DRAWS = 12
HEAD_LOGITS = 2**24  # held at once


class LossProbe(NamedTuple):
    """What the loss of some texts' tokens depends on, at weights that will be edited.

    Attributes:
      places: (weight, layer).
      input_of: place -> what the weight reads at each token of the texts, float32 [Q, in].
      gradient_of: place -> gradients with respect to what it puts out there, float32
        [1 + n_draws, Q, out]: of the texts' mean losses, then of drawn labels'.
      text_Q: which text each token belongs to, ascending.
      n_texts: how many there are.
      is_split: whether each process of a run holds a part of the texts; else each holds all.
    """

    places: Places
    input_of: dict[tuple[str, int], np.ndarray]
    gradient_of: dict[tuple[str, int], np.ndarray]
    text_Q: np.ndarray
    n_texts: int
    is_split: bool = False


def read_loss_probe(
    model: Model,
    texts: PrefilledTexts,
    places: Places,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    split: bool = False,
) -> LossProbe:
    """Read inputs and gradients at weights that will be edited, in 1 + n_draws backward passes.

    Args:
      model: that is to be edited, with the edits it has.
      texts: from `jaxedit.metrics.perplexity.prepare` with a start_layer at or below the places'.
      places: (weight, layer).
      n_draws: of labels; with more the second order's error shrinks by the root.
      seed: of the draws.
      split: let each process of a run keep a part of the texts.

    Raises:
      ValueError: without places or draws, where the texts are prefilled beyond a place or an edit
        of the model, or with another model, where the model has no such layer, and where what is
        read would not fit into the host's memory.
    """
    layers = [layer for _, layer in places]
    if n_draws < 1 or not layers or min(layers) < texts.layer or max(layers) >= model.config.L:
        raise ValueError(
            f"n_draws={n_draws}, places={list(places)}: expected at least one draw, and places in "
            f"layers {texts.layer} (below which these texts were prefilled) to {model.config.L - 1}"
        )
    check_prefilled(model, texts)
    is_own_GBT = [_is_own(segment_BT, split) for segment_BT in texts.packed.segment_GBT]
    _check_size(model, sum(int(np.sum(is_own_BT)) for is_own_BT in is_own_GBT), places, n_draws)
    inputs: dict[tuple[str, int], list[np.ndarray]] = {place: [] for place in places}
    gradients: dict[tuple[str, int], list[np.ndarray]] = {place: [] for place in places}
    text_of = []
    for g, (segment_BT, is_own_BT) in enumerate(
        zip(texts.packed.segment_GBT, is_own_GBT, strict=True)
    ):
        batch = batch_to_device(model, texts.packed, g)
        weight_BT = _mean_weights(segment_BT)
        key = jax.random.fold_in(jax.random.key(seed), g)
        read = _inputs_and_gradients(
            model, *batch, weight_BT, texts.hidden_G[g], key, texts.layer, tuple(places), n_draws
        )
        for place, (x, gradient) in jax.device_get(read).items():
            inputs[place].append(x[is_own_BT])
            gradients[place].append(gradient[:, is_own_BT])
        text_of.append(segment_BT[is_own_BT] - 1)

    # Tokens text by text, as they were before packing.
    text_Q = np.concatenate(text_of)
    order_Q = np.argsort(text_Q, kind="stable")
    return LossProbe(
        tuple(places),
        {place: np.concatenate(read)[order_Q] for place, read in inputs.items()},
        {place: np.concatenate(read, axis=1)[:, order_Q] for place, read in gradients.items()},
        text_Q[order_Q],
        texts.packed.n_texts,
        split,
    )


def _is_own(segment_BT: np.ndarray, split: bool) -> np.ndarray:
    """Tell which tokens of packed rows this process keeps: every n-th text's, or all texts'."""
    is_own_BT = segment_BT > 0
    if split:
        is_own_BT &= (segment_BT - 1) % jax.process_count() == jax.process_index()
    return is_own_BT


def _check_size(model: Model, n_tokens: int, places: Places, n_draws: int) -> None:
    """Say what a probe is about to take of the host's memory, on each process.

    Raises:
      ValueError: where the host has less.
    """
    D, F = model.config.D, model.config.F
    n_values = 0
    for weight, _ in places:
        n_in, n_out = (F, D) if weight == "mlp/w_down" else (D, F)
        n_values += n_in + (1 + n_draws) * n_out
    # While they are put in order there are two of them.
    size_gb, most_gb = n_tokens * n_values * 4e-9, host_bytes() * 1e-9
    size = f"gradients of {n_tokens} tokens at {len(places)} weights, by {n_draws} draws of labels,"
    if 2 * size_gb > most_gb:
        raise ValueError(
            f"{size} would take {size_gb:.1f} GB, and as much again while they are read, of the "
            f"host's {most_gb:.1f} GB of memory: give fewer draws, fewer or shorter texts, or "
            "fewer layers"
        )
    logging.getLogger("jaxedit").info("%s take %.2f GB of the host's memory", size, size_gb)


def _mean_weights(segment_BT: np.ndarray) -> np.ndarray:
    """Return 1 / n_d at each position whose next token is scored, 0 elsewhere."""
    is_scored_BT = np.zeros(segment_BT.shape, bool)
    is_scored_BT[:, :-1] = (segment_BT[:, 1:] == segment_BT[:, :-1]) & (segment_BT[:, 1:] > 0)
    counts = np.bincount(segment_BT[is_scored_BT], minlength=segment_BT.max() + 1)
    return (is_scored_BT / np.maximum(counts[segment_BT], 1)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("start_layer", "places", "n_draws"))
def _inputs_and_gradients(
    model: Model,
    token_BT,
    position_BT,
    segment_BT,
    weight_BT,
    h_BTD,
    key,
    start_layer: int,
    places: Places,
    n_draws: int,
) -> dict[tuple[str, int], tuple[jax.Array, jax.Array]]:
    """Compute what weights read, and the gradients of the losses by what they put out.

    Args:
      model: with the edits it has.
      token_BT: packed rows.
      position_BT: each token's position in its text.
      segment_BT: which text it belongs to.
      weight_BT: of each position's loss in its text's mean.
      h_BTD: the residual stream before `start_layer`, or None: from the first layer on.
      key: of the draws.
      start_layer: the first to be run.
      places: (weight, layer).
      n_draws: of labels.

    Returns:
      Place -> float32 [B, T, in] and [1 + n_draws, B, T, out].
    """
    if h_BTD is None:
        h_BTD, start_layer = embed(model, token_BT, position_BT), 0
    attn_context = causal_attention(position_BT, segment_BT)
    layers = sorted({layer for _, layer in places})
    h_BTD = jax.lax.stop_gradient(run_layers(model, h_BTD, attn_context, start_layer, layers[0]))

    # A zero added to what a weight puts out has that output's gradient.
    def residual_of(offset_of):
        out_BTD, inputs_of = h_BTD, {}
        for layer, next_layer in zip(layers, [*layers[1:], model.config.L], strict=True):
            offset = {weight: offset_of[weight, at] for weight, at in places if at == layer}
            out_BTD, inputs_of[layer] = run_layer(model, out_BTD, attn_context, layer, offset)
            out_BTD = run_layers(model, out_BTD, attn_context, layer + 1, next_layer)
        return out_BTD, inputs_of

    sizes = {"mlp/w_down": model.config.D}
    zero_of = {
        place: jnp.zeros((*h_BTD.shape[:2], sizes.get(place[0], model.config.F)))
        for place in places
    }
    out_BTD, pull_back, inputs_of = jax.vjp(residual_of, zero_of, has_aux=True)

    # One backward pass for the texts' own tokens, and one for each draw of labels.
    gradients = _head_gradients(model, out_BTD, token_BT, weight_BT, key, n_draws)
    (gradient_of,) = jax.lax.map(pull_back, gradients)
    read = {}
    for weight, layer in places:
        inputs = inputs_of[layer]
        x = inputs.key_BTF if weight == "mlp/w_down" else inputs.x_BTD
        read[weight, layer] = x.astype(jnp.float32), gradient_of[weight, layer]
    return replicate(model.mesh, read)


def _head_gradients(model: Model, h_BTD, token_BT, weight_BT, key, n_draws: int) -> jax.Array:
    """Compute gradients of the losses by the last residual stream [1 + n_draws, B, T, D].

    The first are of the tokens that follow, with each text's mean; the others of drawn labels,
    whose sum over a text is over the root of its length.
    """
    head, next_BT = embedding_and_head(model), jnp.roll(token_BT, -1, axis=1)
    B, T, D = h_BTD.shape
    n_positions = min(B * T, max(1, HEAD_LOGITS // model.config.V))
    n_chunks = math.ceil(B * T / n_positions)
    n_more = n_chunks * n_positions - B * T

    def in_chunks(array):
        flat = array.reshape(B * T, *array.shape[2:])
        padded = jnp.pad(flat, [(0, n_more)] + [(0, 0)] * (flat.ndim - 1))
        return padded.reshape(n_chunks, 1, n_positions, *array.shape[2:])

    def of_chunk(chunk):
        h_1QD, next_1Q, weight_1Q, key = chunk
        logits_1QV, pull_back = jax.vjp(head.unembed, h_1QD)
        p_1QV = jax.nn.softmax(logits_1QV)

        # d(-log p(label)) / d logits = p - [label], times the weight of the position's loss. The
        # first labels are the tokens that follow, the others are drawn.
        def of_labels(draw):
            is_drawn, key = draw
            drawn_1Q = jax.random.categorical(key, logits_1QV)
            label_1Q = jnp.where(is_drawn, drawn_1Q, next_1Q)
            weight = jnp.where(is_drawn, jnp.sqrt(weight_1Q), weight_1Q)
            wrong_1QV = p_1QV - jax.nn.one_hot(label_1Q, p_1QV.shape[-1])
            return pull_back((wrong_1QV * weight[..., None]).astype(logits_1QV.dtype))[0]

        is_drawn = jnp.arange(1 + n_draws) > 0
        return jax.lax.map(of_labels, (is_drawn, jax.random.split(key, 1 + n_draws)))

    chunks = *map(in_chunks, (h_BTD, next_BT, weight_BT)), jax.random.split(key, n_chunks)
    by_chunk = jax.lax.map(of_chunk, chunks)
    by_pass = jnp.moveaxis(by_chunk[:, :, 0], 0, 1)
    return by_pass.reshape(1 + n_draws, -1, D)[:, : B * T].reshape(1 + n_draws, B, T, D)
