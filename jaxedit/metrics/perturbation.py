"""The relative perturbation: how far an edit moves the residual stream on ordinary texts.

    p = mean over tokens t of |sum_l k_t,l dW_l| / |h_t|

It is known before any evaluation. k_t,l are the MLP keys of the unedited model at the edited
layers, h_t its residual stream after the last of them; first tokens, where keys are of another
kind, are left out. For one rank-one edit that is |u . k_t| |v| / |h_t|: keys and norms are cached
once a study, and an edit costs one product with them, a hundred-thousandth of an evaluation of the
same texts. For a sequence the changes of all its edits are added up first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.edits.edit import EDITED_WEIGHT, Dense, Edit, LowRank
from jaxedit.mesh import replicate
from jaxedit.models.layers import causal_attention, embed, run_layer
from jaxedit.models.model import Model
from jaxedit.models.ops import PRECISION
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
    """

    layers: tuple[int, ...]
    key_EQF: np.ndarray
    norm_Q: np.ndarray


def read_key_probe(model: Model, texts: PrefilledTexts, layers: tuple[int, ...]) -> KeyProbe:
    """Read the keys of texts at layers whose MLP's second weight will be edited.

    Args:
      model: without edits.
      texts: from `jaxedit.metrics.perplexity.prepare`, with a start_layer at or below the lowest of
        the layers.
      layers: in ascending order.

    Raises:
      ValueError: where the texts are prefilled beyond a layer, or none has two tokens.
    """
    if not layers or layers[0] < texts.layer:
        raise ValueError(
            f"layers={list(layers)}: these texts were prefilled below layer {texts.layer}; "
            "expected layers from there on"
        )
    place_Q3 = _sample_tokens(texts.packed)

    # Batch by batch. Positions are padded to few shapes; what is read at the padding is cut off.
    keys, norms = [], []
    for g in np.unique(place_Q3[:, 0]):
        place_Q2 = place_Q3[place_Q3[:, 0] == g, 1:]
        n = len(place_Q2)
        padded_Q2 = np.pad(place_Q2, ((0, round_up(n, STEP) - n), (0, 0)))
        at = (padded_Q2[:, 0], padded_Q2[:, 1])
        batch = *batch_to_device(model, texts.packed, g), texts.hidden_G[g]
        key_EQF, norm_Q = jax.device_get(
            _keys_and_norms(model, *batch, jnp.int32(texts.layer), np.array(layers), at)
        )
        keys.append(key_EQF[:, :n])
        norms.append(norm_Q[:n])
    return KeyProbe(tuple(layers), np.concatenate(keys, axis=1), np.concatenate(norms))


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


@jax.jit
def _keys_and_norms(
    model: Model, token_BT, position_BT, segment_BT, h_BTD, start_layer, layer_E, at
) -> tuple[jax.Array, jax.Array]:
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

    Returns:
      [E, Q, F] and [Q].
    """
    if h_BTD is None:
        h_BTD, start_layer = embed(model, token_BT, position_BT), 0
    attn_context = causal_attention(position_BT, segment_BT)

    def body(layer, carry):
        h_BTD, key_EQF = carry
        h_BTD, key_BTF = run_layer(model, h_BTD, attn_context, layer)
        e = jnp.argmax(layer_E == layer)  # 0 for a layer that is not asked for: written back as is
        is_edited = jnp.any(layer_E == layer)
        key_QF = jnp.where(is_edited, key_BTF[at].astype(jnp.float32), key_EQF[e])
        return h_BTD, key_EQF.at[e].set(key_QF)

    empty_EQF = jnp.zeros((layer_E.shape[0], at[0].shape[0], model.config.F))
    carry = (h_BTD, empty_EQF)
    h_BTD, key_EQF = jax.lax.fori_loop(start_layer, layer_E[-1] + 1, body, carry)
    return replicate(model.mesh, (key_EQF, jnp.linalg.norm(h_BTD[at], axis=-1)))


def relative_perturbation(probe: KeyProbe, edit: Edit) -> float:
    """Compute p of one edit; infinite where it is not finite.

    Args:
      probe: of the unedited model.
      edit: of the probed layers.

    Raises:
      ValueError: where the edit changes something else than the probed layers.
    """
    changes = []
    for delta in edit.deltas:
        if delta.weight != EDITED_WEIGHT or delta.layer not in probe.layers:
            raise ValueError(
                f"the edit changes {delta.weight} of layer {delta.layer}; "
                f"probed were layers {list(probe.layers)}"
            )
        key_QF = probe.key_EQF[probe.layers.index(delta.layer)]
        changes.append(_change_of(delta, key_QF))
    return _mean_ratio(probe, np.sum(changes, axis=0)) if changes else 0.0


def total_relative_perturbation(probe: KeyProbe, model: Model) -> float:
    """Compute p of all edits that a model has, taken together; infinite where it is not finite.

    Args:
      probe: of the unedited model.
      model: with room in its overlay for the probed layers.
    """
    slot_E = np.asarray(model.overlay.slot[EDITED_WEIGHT])[list(probe.layers)]
    return _mean_ratio(probe, np.asarray(_total_change(model, slot_E, probe.key_EQF)))


@jax.jit
def _total_change(model: Model, slot_E, key_EQF) -> jax.Array:
    """Sum k dW over the edited layers [Q, D]."""
    delta_EFD = model.overlay.delta[EDITED_WEIGHT][slot_E]
    change_QD = jnp.einsum("EQF,EFD->QD", key_EQF, delta_EFD, precision=PRECISION)
    return replicate(model.mesh, change_QD)


def _change_of(delta: LowRank | Dense, key_QF: np.ndarray) -> np.ndarray:
    """Compute k dW of one layer [Q, D], for low-rank edits as (k u) v."""
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(delta, Dense):
            return key_QF @ np.asarray(delta.delta_FD)
        return (key_QF @ np.asarray(delta.u_FR)) @ np.asarray(delta.v_RD)


def _mean_ratio(probe: KeyProbe, change_QD: np.ndarray) -> float:
    """Average |k dW| / |h| over the sampled tokens."""
    with np.errstate(over="ignore", invalid="ignore"):
        p = float(np.mean(np.linalg.norm(change_QD, axis=-1) / probe.norm_Q))
    return p if np.isfinite(p) else float("inf")
