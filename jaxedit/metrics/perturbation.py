"""The relative perturbation: how far an edit moves the residual stream on ordinary texts.

    p = mean over tokens t of |sum_l k_t,l dW_l| / |h_t|

It is known before any evaluation. k_t,l are the MLP keys of the unedited model at the edited
layers, h_t its residual stream after the last of them; first tokens, where keys are of another
kind, are left out. For one rank-one edit that is |u . k_t| |v| / |h_t|: keys and norms are cached
once a study, and an edit costs one product with them, a hundred-thousandth of an evaluation of the
same texts. For a sequence the changes of all its edits are added up first.

Where w_up or w_gate is edited, k dW is replaced by what it is of w_down alone: the change of what
the layer's MLP puts out, given what it reads in the unedited model. That runs each of these MLPs
twice. Where an MLP's output does not reach the residual stream as it is, that of what does counts.
"""

import functools
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.edits.apply import apply
from jaxedit.edits.edit import EDITED_WEIGHT, Edit, change_of_output
from jaxedit.mesh import replicate
from jaxedit.models.layers import block_at, causal_attention, embed, run_layer
from jaxedit.models.model import Model
from jaxedit.models.norms import to_residual
from jaxedit.models.ops import PRECISION, Overlay
from jaxedit.models.packing import Packed
from jaxedit.models.score import PrefilledTexts, batch_to_device
from jaxedit.rounding import round_up

N_TOKENS = 4096  # so many, evenly drawn, say what all would
STEP = 256  # of a batch a multiple of this is read: few shapes, so that batches share programs


class KeyProbe(NamedTuple):
    """The unedited model's keys and residual streams at sampled tokens of some texts.

    Attributes:
      layers: the edited layers, ascending.
      key_EQF: the MLP keys at each of them, float32.
      norm_Q: the norms of the residual stream after the last of them.
      input_EQD: what the MLPs read, float32; None where only their second weight is edited.
      value_EQD: what the MLPs put out, float32; None where that reaches the residual stream as it
        is.
    """

    layers: tuple[int, ...]
    key_EQF: np.ndarray
    norm_Q: np.ndarray
    input_EQD: np.ndarray | None = None
    value_EQD: np.ndarray | None = None


def read_key_probe(
    model: Model,
    texts: PrefilledTexts,
    layers: tuple[int, ...],
    weights: Collection[str] = (EDITED_WEIGHT,),
) -> KeyProbe:
    """Read the keys of texts at layers whose MLP will be edited.

    Args:
      model: without edits.
      texts: from `jaxedit.metrics.perplexity.prepare`, with a start_layer at or below the lowest of
        the layers.
      layers: in ascending order.
      weights: the weights of the MLP that will be edited.

    Raises:
      ValueError: where the texts are prefilled beyond a layer, or none has two tokens.
    """
    if not layers or layers[0] < texts.layer:
        raise ValueError(
            f"layers={list(layers)}: these texts were prefilled below layer {texts.layer}; "
            "expected layers from there on"
        )
    place_Q3 = _sample_tokens(texts.packed)
    reads_inputs = not set(weights) <= {EDITED_WEIGHT}
    reads_values = not model.config.adds_as_is

    # Batch by batch. Positions are padded to few shapes; what is read at the padding is cut off.
    keys, norms, inputs, values = [], [], [], []
    for g in np.unique(place_Q3[:, 0]):
        place_Q2 = place_Q3[place_Q3[:, 0] == g, 1:]
        n = len(place_Q2)
        padded_Q2 = np.pad(place_Q2, ((0, round_up(n, STEP) - n), (0, 0)))
        at = (padded_Q2[:, 0], padded_Q2[:, 1])
        batch = *batch_to_device(model, texts.packed, g), texts.hidden_G[g]
        read = _keys_and_norms(
            model, *batch, jnp.int32(texts.layer), np.array(layers), at, reads_inputs, reads_values
        )
        key_EQF, norm_Q, input_EQD, value_EQD = jax.device_get(read)
        keys.append(key_EQF[:, :n])
        norms.append(norm_Q[:n])
        inputs.append(input_EQD[:, :n])
        values.append(value_EQD[:, :n])
    return KeyProbe(
        tuple(layers),
        np.concatenate(keys, axis=1),
        np.concatenate(norms),
        np.concatenate(inputs, axis=1) if reads_inputs else None,
        np.concatenate(values, axis=1) if reads_values else None,
    )


def _sample_tokens(packed: Packed) -> np.ndarray:
    """Sample N_TOKENS tokens evenly, none of them a text's first; batch, row, column [Q, 3]."""
    places = []
    for g, segment_BT in enumerate(packed.segment_GBT):
        at_Q2 = np.argwhere((segment_BT > 0) & (packed.position_GBT[g] > 0))
        places.append(np.insert(at_Q2, 0, g, axis=1))
    place_Q3 = np.concatenate(places)
    if not len(place_Q3):
        raise ValueError("a relative perturbation needs texts of at least two tokens")
    n_sampled = min(N_TOKENS, len(place_Q3))
    return place_Q3[np.linspace(0, len(place_Q3) - 1, n_sampled).astype(int)]


@functools.partial(jax.jit, static_argnames=("reads_inputs", "reads_values"))
def _keys_and_norms(
    model: Model,
    token_BT,
    position_BT,
    segment_BT,
    h_BTD,
    start_layer,
    layer_E,
    at,
    reads_inputs: bool,
    reads_values: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Compute keys at some positions, and the norms of the residual stream after the last layer.

    Args:
      model: without edits.
      token_BT: packed rows.
      position_BT: each token's position in its text.
      segment_BT: which text it belongs to.
      h_BTD: the residual stream before `start_layer`, or None: from the first layer on.
      start_layer: the first to be run.
      layer_E: whose keys, ascending.
      at: (row_Q, column_Q), the positions.
      reads_inputs: whether what the MLPs read is asked for too.
      reads_values: whether what they put out is.

    Returns:
      [E, Q, F], [Q], and what the MLPs read and put out there, both [E, Q, D]; of no layer where it
      is not asked for.
    """
    if h_BTD is None:
        h_BTD, start_layer = embed(model, token_BT, position_BT), 0
    attn_context = causal_attention(position_BT, segment_BT)

    def body(layer, carry):
        h_BTD, key_EQF, input_EQD, value_EQD = carry
        h_BTD, inputs = run_layer(model, h_BTD, attn_context, layer)
        e = jnp.argmax(layer_E == layer)  # 0 for a layer that is not asked for: written back as is
        is_edited = jnp.any(layer_E == layer)
        key_QF = jnp.where(is_edited, inputs.key_BTF[at].astype(jnp.float32), key_EQF[e])
        if reads_inputs:
            x_QD = jnp.where(is_edited, inputs.x_BTD[at].astype(jnp.float32), input_EQD[e])
            input_EQD = input_EQD.at[e].set(x_QD)
        if reads_values:
            mlp = block_at(model, layer).mlp
            value_QD = mlp.value(inputs.key_BTF[at][None], model.overlay, layer)[0]
            value_EQD = value_EQD.at[e].set(jnp.where(is_edited, value_QD, value_EQD[e]))
        return h_BTD, key_EQF.at[e].set(key_QF), input_EQD, value_EQD

    E, Q = layer_E.shape[0], at[0].shape[0]
    input_EQD, value_EQD = (
        jnp.zeros((E if is_read else 0, Q, model.config.D))
        for is_read in (reads_inputs, reads_values)
    )
    carry = (h_BTD, jnp.zeros((E, Q, model.config.F)), input_EQD, value_EQD)
    end = jax.lax.fori_loop(start_layer, layer_E[-1] + 1, body, carry)
    h_BTD, key_EQF, input_EQD, value_EQD = end
    norm_Q = jnp.linalg.norm(h_BTD[at], axis=-1)
    return replicate(model.mesh, (key_EQF, norm_Q, input_EQD, value_EQD))


def relative_perturbation(probe: KeyProbe, edit: Edit, unedited: Model) -> float:
    """Compute p of one edit; infinite where it is not finite.

    Args:
      probe: of the unedited model.
      edit: of the probed layers.
      unedited: the probed model.

    Raises:
      ValueError: where the edit changes something else than the probed layers.
    """
    for delta in edit.deltas:
        is_probed = delta.weight == EDITED_WEIGHT or probe.input_EQD is not None
        if delta.layer not in probe.layers or not is_probed:
            raise ValueError(
                f"the edit changes {delta.weight} of layer {delta.layer}; "
                f"probed were layers {list(probe.layers)}"
            )
    if any(delta.weight != EDITED_WEIGHT for delta in edit.deltas):
        edited = apply(unedited, edit)
        change_EQD = _change_of_mlps(edited, unedited.overlay, probe.input_EQD, probe.layers)
        return _mean_ratio(unedited, probe, change_EQD)
    if not edit.deltas:
        return 0.0
    changes = [
        change_of_output(delta, probe.key_EQF[probe.layers.index(delta.layer)])
        for delta in edit.deltas
    ]
    if unedited.config.adds_as_is:
        return _mean_ratio(unedited, probe, np.sum(changes, axis=0)[None])
    change_EQD = np.zeros((len(probe.layers), *changes[0].shape), np.float32)
    for delta, change_QD in zip(edit.deltas, changes, strict=True):
        change_EQD[probe.layers.index(delta.layer)] += change_QD
    return _mean_ratio(unedited, probe, change_EQD)


def total_relative_perturbation(probe: KeyProbe, model: Model) -> float:
    """Compute p of all edits that a model has, taken together; infinite where it is not finite.

    Args:
      probe: of the unedited model.
      model: with room in its overlay for the probed layers.
    """
    if probe.input_EQD is not None:
        change_EQD = _change_of_mlps(model, Overlay({}, {}), probe.input_EQD, probe.layers)
    else:
        slot_E = np.asarray(model.overlay.slot[EDITED_WEIGHT])[list(probe.layers)]
        change_EQD = _total_change(model, slot_E, probe.key_EQF)
    return _mean_ratio(model, probe, change_EQD)


@jax.jit
def _total_change(model: Model, slot_E, key_EQF) -> jax.Array:
    """Compute k dW of the edited layers [E, Q, D]; their sum where no norm is between (E = 1)."""
    delta_EFD = model.overlay.delta[EDITED_WEIGHT][slot_E]
    if model.config.adds_as_is:
        change_QD = jnp.einsum("EQF,EFD->QD", key_EQF, delta_EFD, precision=PRECISION)
        return replicate(model.mesh, change_QD[None])
    change_EQD = jnp.einsum("EQF,EFD->EQD", key_EQF, delta_EFD, precision=PRECISION)
    return replicate(model.mesh, change_EQD)


@functools.partial(jax.jit, static_argnames="layers")
def _change_of_mlps(model: Model, before: Overlay, input_EQD, layers: tuple[int, ...]) -> jax.Array:
    """Compute what edits change of each layer's MLP's output, given its input [E, Q, D].

    Args:
      model: with the edits.
      before: the overlay without them.
      input_EQD: what the MLPs read.
      layers: which they are of.
    """
    changes = []
    for e, layer in enumerate(layers):
        mlp, x_1QD = block_at(model, layer).mlp, jnp.asarray(input_EQD)[e][None]
        value_1QD, value_before_1QD = (
            mlp.value(mlp.key(x_1QD, overlay, layer), overlay, layer)
            for overlay in (model.overlay, before)
        )
        changes.append((value_1QD - value_before_1QD)[0])
    return replicate(model.mesh, jnp.stack(changes))


@functools.partial(jax.jit, static_argnames="layers")
def _in_residual(model: Model, value_EQD, change_EQD, layers: tuple[int, ...]) -> jax.Array:
    """Compute the changes of the residual stream [E, Q, D] where MLPs' outputs change so."""
    config, changes = model.config, []
    for e, layer in enumerate(layers):
        mlp, value_QD = block_at(model, layer).mlp, jnp.asarray(value_EQD)[e]
        before_QD = to_residual(config, mlp, value_QD)
        changes.append(to_residual(config, mlp, value_QD + change_EQD[e]) - before_QD)
    return replicate(model.mesh, jnp.stack(changes))


def _mean_ratio(model: Model, probe: KeyProbe, change_EQD) -> float:
    """Average |sum_l k dW| / |h| over the sampled tokens.

    Args:
      model: with the weights of the probed one.
      probe: of the unedited model.
      change_EQD: k dW of each probed layer.
    """
    if probe.value_EQD is not None:
        change_EQD = _in_residual(model, probe.value_EQD, change_EQD, probe.layers)
    change_QD = np.sum(np.asarray(change_EQD), axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        p = float(np.mean(np.linalg.norm(change_QD, axis=-1) / probe.norm_Q))
    return p if np.isfinite(p) else float("inf")
