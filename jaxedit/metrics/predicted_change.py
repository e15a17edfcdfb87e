"""An edit's change of the texts' loss, in sign and size, predicted without running the model.

Of a text d with n_d scored tokens let L_d be the mean loss a token, y_t what an edited weight puts
out at token t, dy_t = x_t dW its change by the edit, and g_t = dL_d / dy_t. Then

    first order     f_d = sum_t g_t . dy_t
    second order    s_d = 1/2 E_labels [ (sum_t g~_t . dy_t)^2 ]
    predicted       f_d + c s_d

where the labels are drawn from the model's own distribution of the next token, at each position by
itself, and g~_t is the gradient of their summed loss over sqrt(n_d). Scores at different positions
are uncorrelated, so one backward pass a draw estimates the whole Gauss-Newton form of L_d, cross
terms between tokens included. Several edited weights are summed before squaring. c is below 1, as
the loss curves less than this form.

Inputs x_t and the 1 + n_draws gradients are read once; an edit of low rank then costs some
products with them, about a ten-thousandth of an evaluation.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.edits.edit import EDITED_WEIGHT, Dense, Edit, LowRank
from jaxedit.mesh import replicate, to_host
from jaxedit.metrics.perturbation import change_of_output
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layer, run_layers
from jaxedit.models.model import Model
from jaxedit.models.output_gradients import Places
from jaxedit.models.score import PrefilledTexts, batch_to_device

N_DRAWS = 12
CURVATURE_SHARE = 0.7  # the constant c, where no measured edit has told another
HEAD_LOGITS = 2**24  # held at once


class LossProbe(NamedTuple):
    """What the loss of some texts' tokens depends on, at weights that will be edited.

    Attributes:
      places: (weight, layer).
      input_of: place -> what the weight reads at each token of the texts, float32 [Q, in].
      gradient_of: place -> gradients with respect to what it puts out there, float32
        [1 + n_draws, Q, out]: of the texts' mean losses, then of drawn labels'.
      text_Q: which text each token belongs to.
      n_texts: how many there are.
    """

    places: Places
    input_of: dict[tuple[str, int], np.ndarray]
    gradient_of: dict[tuple[str, int], np.ndarray]
    text_Q: np.ndarray
    n_texts: int


class PredictedChange(NamedTuple):
    """The predicted change of each text's mean loss, in nats a token.

    Attributes:
      first_nats: the first order of each text.
      second_nats: the second order by each draw of labels, [n_draws, texts].
    """

    first_nats: np.ndarray
    second_nats: np.ndarray

    def per_text(self, curvature_share: float = CURVATURE_SHARE) -> np.ndarray:
        """Return the predicted change of each text: first order and a share c of the second."""
        return self.first_nats + curvature_share * np.mean(self.second_nats, axis=0)

    def mean_nats(self, curvature_share: float = CURVATURE_SHARE) -> float:
        """Return its mean over texts, which `delta_nll_nats` is the measured one of."""
        return float(np.mean(self.per_text(curvature_share)))

    def stderr_nats(self, curvature_share: float = CURVATURE_SHARE) -> float:
        """Return the mean's standard error by the draws; NaN of a single draw."""
        draws = np.mean(self.second_nats, axis=1)
        if len(draws) < 2:
            return math.nan
        return curvature_share * float(np.std(draws, ddof=1) / math.sqrt(len(draws)))


def read_loss_probe(
    model: Model, texts: PrefilledTexts, places: Places, n_draws: int = N_DRAWS, seed: int = 0
) -> LossProbe:
    """Read inputs and gradients at weights that will be edited, in 1 + n_draws backward passes.

    Args:
      model: that is to be edited, with the edits it has.
      texts: from `jaxedit.metrics.perplexity.prepare` with a start_layer at or below the places'.
      places: (weight, layer).
      n_draws: of labels; with more the second order's error shrinks by the root.
      seed: of the draws.

    Raises:
      ValueError: without places or draws, or where the texts are prefilled beyond one.
    """
    lowest = min((layer for _, layer in places), default=-1)
    if n_draws < 1 or lowest < texts.layer:
        raise ValueError(
            f"n_draws={n_draws}, places={list(places)}: expected at least one draw, and places at "
            f"or above layer {texts.layer}, below which these texts were prefilled"
        )
    inputs: dict[tuple[str, int], list[np.ndarray]] = {place: [] for place in places}
    gradients: dict[tuple[str, int], list[np.ndarray]] = {place: [] for place in places}
    text_of = []
    for g, segment_BT in enumerate(texts.packed.segment_GBT):
        batch = batch_to_device(model, texts.packed, g)
        weight_BT = _mean_weights(segment_BT)
        key = jax.random.fold_in(jax.random.key(seed), g)
        read = _inputs_and_gradients(
            model, *batch, weight_BT, texts.hidden_G[g], key, texts.layer, tuple(places), n_draws
        )
        is_text_BT = segment_BT > 0
        for place, (x, gradient) in jax.device_get(read).items():
            inputs[place].append(x[is_text_BT])
            gradients[place].append(gradient[:, is_text_BT])
        text_of.append(segment_BT[is_text_BT] - 1)
    return LossProbe(
        tuple(places),
        {place: np.concatenate(read) for place, read in inputs.items()},
        {place: np.concatenate(read, axis=1) for place, read in gradients.items()},
        np.concatenate(text_of),
        texts.packed.n_texts,
    )


def predict_change(probe: LossProbe, edit: Edit) -> PredictedChange:
    """Predict what an edit changes of each text's mean loss.

    Args:
      probe: of the model that the edit is for.
      edit: of the probed weights.

    Raises:
      ValueError: where it changes another weight.
    """
    return _predict(probe, edit.deltas)


def predict_total_change(probe: LossProbe, before: Model, model: Model) -> PredictedChange:
    """Predict what all edits of a model change together.

    Args:
      probe: of `before`.
      before: the model without these edits, with room for them.
      model: with them.
    """
    deltas = []
    for weight, layer in probe.places:
        slot = int(np.asarray(model.overlay.slot[weight])[layer])
        change = model.overlay.delta[weight][slot] - before.overlay.delta[weight][slot]
        deltas.append(Dense(weight, layer, to_host(change)))
    return _predict(probe, deltas)


def _predict(probe: LossProbe, deltas: Sequence[LowRank | Dense]) -> PredictedChange:
    """Sum the scores of all changes over each text's tokens; the second order is of the sum."""
    n_rows = 1 + _n_draws(probe)
    scores = np.zeros((n_rows, len(probe.text_Q)))
    for delta in deltas:
        place = delta.weight, delta.layer
        if place not in probe.places:
            raise ValueError(
                f"the edit changes {delta.weight} of layer {delta.layer}; probed were "
                f"{', '.join(f'{weight} of layer {layer}' for weight, layer in probe.places)}"
            )
        change = change_of_output(delta, probe.input_of[place])
        scores += np.einsum("nqo,qo->nq", probe.gradient_of[place], change)
    sums = np.stack(
        [np.bincount(probe.text_Q, weights=score, minlength=probe.n_texts) for score in scores]
    )
    return PredictedChange(sums[0], 0.5 * sums[1:] ** 2)


def _n_draws(probe: LossProbe) -> int:
    return len(probe.gradient_of[probe.places[0]]) - 1


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

    sizes = {EDITED_WEIGHT: model.config.D}
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
        x = inputs.key_BTF if weight == EDITED_WEIGHT else inputs.x_BTD
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
