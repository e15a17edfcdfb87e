"""The relative perturbation of an edit: how hard it pushes the model's stream on ordinary texts,
before any evaluation.

    p = mean over tokens t of |sum_l k_t,l dW_l| / |h_t|

k_t,l are the MLP keys of the unedited model at the edited layers, h_t its residual stream after the
last of them; first tokens, where keys are of another kind, are left out. For one rank-one edit that
is |u . k_t| |v| / |h_t|: keys and norms are cached once a study, and an edit costs one product with
them, a hundred-thousandth of an evaluation of the same texts. For a sequence the pushes of all its
edits are added up first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.edits.edit import EDITED_WEIGHT, Dense, Edit, LowRank
from jaxedit.mesh import replicate
from jaxedit.models.layers import causal_attention, embed, run_layer
from jaxedit.models.model import Model
from jaxedit.models.ops import PRECISION
from jaxedit.models.score import PrefilledTexts, batch_to_device

N_TOKENS = 4096  # so many, evenly drawn, say what all would
STEP = 256


class KeyProbe(NamedTuple):
    """What is cached of the unedited model on some texts: keys of each edited layer, norms after
    the last of them.
    """

    layers: tuple[int, ...]
    key_ETF: np.ndarray
    norm_T: np.ndarray


def read_key_probe(model: Model, texts: PrefilledTexts, layers: tuple[int, ...]) -> KeyProbe:
    """Reads the keys of texts at layers whose MLP's second weight will be edited.

    Args:
      model: without edits.
      texts: from `jaxedit.metrics.perplexity.prepare`, begun at or below the lowest of the layers.
      layers: in ascending order.

    Raises:
      ValueError: where the texts were begun above a layer, or none has two tokens.
    """
    if not layers or layers[0] < texts.layer:
        raise ValueError(
            f"layers={list(layers)}: these texts were begun at layer {texts.layer}; expected layers from there on"
        )
    packed = texts.packed
    batches = enumerate(zip(packed.segment_GBT, packed.position_GBT, strict=True))
    in_batch = [
        (g, np.argwhere((segment_BT > 0) & (position_BT > 0)))
        for g, (segment_BT, position_BT) in batches
    ]
    places = np.concatenate([np.insert(at, 0, g, axis=1) for g, at in in_batch])
    if not len(places):
        raise ValueError("a relative perturbation needs texts of at least two tokens")
    places = places[np.linspace(0, len(places) - 1, min(N_TOKENS, len(places))).astype(int)]
    keys, norms = [], []
    for g in np.unique(places[:, 0]):
        at_2T = places[places[:, 0] == g].T[1:]
        n = at_2T.shape[1]
        at = tuple(
            np.pad(at_2T, ((0, 0), (0, -n % STEP)))
        )  # few shapes, so that batches share what is compiled
        batch = *batch_to_device(model, packed, g), texts.hidden_G[g]
        key_ETF, norm_T = jax.device_get(
            _keys_and_norms(model, *batch, jnp.int32(texts.layer), np.array(layers), at)
        )
        keys.append(key_ETF[:, :n])
        norms.append(norm_T[:n])
    return KeyProbe(tuple(layers), np.concatenate(keys, axis=1), np.concatenate(norms))


@jax.jit
def _keys_and_norms(model: Model, token_BT, position_BT, segment_BT, h_BTD, lowest, layer_E, at):
    """Keys at some positions [E, T, F], and the norms of the residual stream after the last layer
    [T].
    """
    if h_BTD is None:
        h_BTD, lowest = embed(model, token_BT, position_BT), 0
    attending = causal_attention(position_BT, segment_BT)

    def body(layer, carry):
        h_BTD, key_ETF = carry
        h_BTD, key_BTF = run_layer(model, h_BTD, attending, layer)
        slot = jnp.argmax(layer_E == layer)
        key_TF = jnp.where(
            jnp.any(layer_E == layer), key_BTF[at].astype(jnp.float32), key_ETF[slot]
        )
        return h_BTD, key_ETF.at[slot].set(key_TF)

    empty = jnp.zeros((layer_E.shape[0], at[0].shape[0], model.config.F))
    h_BTD, key_ETF = jax.lax.fori_loop(lowest, layer_E[-1] + 1, body, (h_BTD, empty))
    return replicate(model.mesh, (key_ETF, jnp.linalg.norm(h_BTD[at], axis=-1)))


def relative_perturbation(probes: KeyProbe, edit: Edit) -> float:
    """p of one edit; infinite where it is not finite.

    Raises:
      ValueError: where the edit changes something else than the probed layers.
    """
    parts = []
    for delta in edit.deltas:
        if delta.weight != EDITED_WEIGHT or delta.layer not in probes.layers:
            raise ValueError(
                f"the edit changes {delta.weight} of layer {delta.layer}; probed were layers {list(probes.layers)}"
            )
        parts.append(_product(probes.key_ETF[probes.layers.index(delta.layer)], delta))
    return _relative(probes, np.sum(parts, axis=0)) if parts else 0.0


def total_relative_perturbation(probes: KeyProbe, model: Model) -> float:
    """p of all edits that a model has, taken together; infinite where it is not finite."""
    overlay = model.overlay
    slots = np.asarray(overlay.slot[EDITED_WEIGHT])[list(probes.layers)]
    return _relative(probes, np.asarray(_total_change(model, slots, probes.key_ETF)))


@jax.jit
def _total_change(model: Model, slot_E, key_ETF) -> jax.Array:
    delta_EFD = model.overlay.delta[EDITED_WEIGHT][slot_E]
    return replicate(model.mesh, jnp.einsum("ETF,EFD->TD", key_ETF, delta_EFD, precision=PRECISION))


def _product(key_TF: np.ndarray, delta: LowRank | Dense) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(delta, Dense):
            return key_TF @ np.asarray(delta.delta_FD)
        return (key_TF @ np.asarray(delta.u_FR)) @ np.asarray(delta.v_RD)


def _relative(probes: KeyProbe, push_TD: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        p = float(np.mean(np.linalg.norm(push_TD, axis=-1) / probes.norm_T))
    return p if np.isfinite(p) else float("inf")
