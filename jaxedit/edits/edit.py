"""An edit as a value: changes of named weights, added to a model's overlay and exactly undone.

The base weights are never written. Applying adds an edit's change in float32 to the overlay;
undoing sums the remaining edits anew from zero, since (a + b) - b is not a. Both run the same
compiled addition in the same order, so undoing is bit-exact, and so is rebuilding a model from its
journal.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import to_host
from jaxedit.models.model import Model, ModelMetadata, allocate_deltas
from jaxedit.models.ops import PRECISION, Overlay, Slots

Array = np.ndarray | jax.Array

# The weight that all methods here change: the second layer of an MLP, a key-value memory.
EDITED_WEIGHT = "mlp/w_down"


class LowRank(NamedTuple):
    """A change `u_FR @ v_RD` of one layer of a weight.

    Attributes:
      weight: e.g. "mlp/w_down"; in x out, as all kernels are stored.
      layer: which.
      u_FR: the left factor, in x rank.
      v_RD: the right factor, rank x out.
    """

    weight: str
    layer: int
    u_FR: Array
    v_RD: Array


class Dense(NamedTuple):
    """A change of one layer of a weight, written out.

    Attributes:
      weight: as in `LowRank`.
      layer: which.
      delta_FD: the change, in x out.
    """

    weight: str
    layer: int
    delta_FD: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """A change of a model's weights, made by an editor for some requests.

    Attributes:
      deltas: the changes, at most one for each weight and layer.
      memory: arrays that the editor's state learns from this edit (keys of past facts, say);
        journalled with it.
      hf_layout: weight -> (HF tensor name with {l}, HF layout "out in -> in out"), for `dense`.
      anchor: "bos" where the edit was made with a begin-of-text token in front of every prompt, and
        is to be used so.
    """

    deltas: tuple[LowRank | Dense, ...]
    memory: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    hf_layout: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    anchor: str | None = None

    def dense(self) -> dict[str, np.ndarray]:
        """Write the changes out under HF's names.

        Returns:
          HF weight name -> float32 change in that weight's own HF orientation.
        """
        changes = {}
        for delta in self.deltas:
            name, pattern = self.hf_layout[delta.weight]
            hf_side, our_side = pattern.split(" -> ")
            change = einops.rearrange(to_dense(delta), f"{our_side} -> {hf_side}")
            changes[name.format(l=delta.layer)] = change
        return changes

    @property
    def norm(self) -> float:
        """The Frobenius norm of the whole change."""
        squares = [np.square(to_dense(delta), dtype=np.float64) for delta in self.deltas]
        return float(np.sqrt(sum(map(np.sum, squares))))


def to_dense(delta: LowRank | Dense) -> np.ndarray:
    """Write a delta out, float32 [F, D]."""
    return np.asarray(delta.delta_FD if isinstance(delta, Dense) else delta.u_FR @ delta.v_RD)


def scale_delta(delta: LowRank | Dense, factor: float) -> LowRank | Dense:
    """Multiply a delta by a factor; of a low-rank one, v."""
    if isinstance(delta, Dense):
        return delta._replace(delta_FD=np.asarray(delta.delta_FD) * np.float32(factor))
    return delta._replace(v_RD=np.asarray(delta.v_RD) * np.float32(factor))


def scale_edit(edit: Edit, factor: float) -> Edit:
    """Multiply an edit's deltas by a factor; its memory, that of the whole edit, is left out."""
    deltas = tuple(scale_delta(delta, factor) for delta in edit.deltas)
    return dataclasses.replace(edit, deltas=deltas, memory={})


def make_edit(
    model: Model, deltas: Sequence[LowRank | Dense], memory: Mapping[str, np.ndarray] | None = None
) -> Edit:
    """Make an edit of this model, its factors as float32 on the host.

    Args:
      model: whose weights are changed.
      deltas: at most one for each weight and layer.
      memory: see `Edit`.
    """
    layout = {delta.weight: model.metadata.tensor_names[delta.weight] for delta in deltas}
    return Edit(tuple(map(_on_host, deltas)), dict(memory or {}), layout)


def _on_host(delta: LowRank | Dense) -> LowRank | Dense:
    if isinstance(delta, Dense):
        return delta._replace(delta_FD=np.asarray(to_host(delta.delta_FD), np.float32))
    return delta._replace(
        u_FR=np.asarray(to_host(delta.u_FR), np.float32),
        v_RD=np.asarray(to_host(delta.v_RD), np.float32),
    )


def allocate_for(model: Model, edit: Edit) -> Model:
    """Return the model with room in its overlay for an edit."""
    for weight in dict.fromkeys(delta.weight for delta in edit.deltas):
        layers = sorted({delta.layer for delta in edit.deltas if delta.weight == weight})
        model = allocate_deltas(model, weight, tuple(layers))
    return model


def apply(model: Model, edit: Edit) -> Model:
    """Return a new model with the edit added; `model` is unchanged.

    Raises:
      ValueError: where the edit's shapes are not those of the model's weights.
    """
    model = allocate_for(model, edit)
    overlay = model.overlay
    for delta in edit.deltas:
        check_shape(model, delta)
        slot = int(overlay.slot[delta.weight][delta.layer])
        if isinstance(delta, Dense):
            changed = _add_dense(overlay.delta[delta.weight], slot, delta.delta_FD)
        else:
            changed = _add_low_rank(overlay.delta[delta.weight], slot, delta.u_FR, delta.v_RD)
        overlay = Overlay({**overlay.delta, delta.weight: changed}, overlay.slot)
    return _with_edits(model, overlay, (*model.metadata.history, edit))


def check_shape(model: Model, delta: LowRank | Dense) -> None:
    """Check that a delta has the shape of the model's weight.

    Raises:
      ValueError: where it has another: it is another model's.
    """
    expected = model.base[delta.weight].shape[1:]
    if isinstance(delta, Dense):
        found = delta.delta_FD.shape
    else:
        found = (delta.u_FR.shape[0], delta.v_RD.shape[1])
    if found != expected:
        raise ValueError(
            f"the edit changes {delta.weight} by a {found} matrix, this model's is {expected}: "
            "another model's edit?"
        )


def undo(model: Model, edit: Edit) -> Model:
    """Return a new model without the edit, bit for bit the one that never had it.

    Raises:
      ValueError: where the model does not have the edit.
    """
    kept = [e for e in model.metadata.history if e is not edit]
    if len(kept) == len(model.metadata.history):
        raise ValueError(
            f"this model does not have that edit; it has {len(kept)} edits, "
            "and each can be undone once"
        )
    return replay_edits(model, kept)


def without_edits(model: Model) -> Model:
    """Return the model as if it had no edits, with all its arrays.

    No layer reads the overlay, which keeps its room.
    """
    hidden = {name: Slots([-1] * model.config.L) for name in model.overlay.slot}
    return _with_edits(model, Overlay(model.overlay.delta, hidden), ())


def replay_edits(model: Model, edits: list[Edit]) -> Model:
    """Return the model with exactly these edits, summed from zero in this order.

    The overlay keeps its room.
    """
    zeros = {name: jnp.zeros_like(delta_EFD) for name, delta_EFD in model.overlay.delta.items()}
    model = _with_edits(model, Overlay(zeros, model.overlay.slot), ())
    for edit in edits:
        model = apply(model, edit)
    return model


def _with_edits(model: Model, overlay: Overlay, history: tuple[Edit, ...]) -> Model:
    metadata: ModelMetadata = dataclasses.replace(model.metadata, history=history)
    return dataclasses.replace(model, overlay=overlay, metadata=metadata)


@jax.jit
def _add_low_rank(delta_EFD, slot, u_FR, v_RD):
    return delta_EFD.at[slot].add(jnp.matmul(u_FR, v_RD, precision=PRECISION))


@jax.jit
def _add_dense(delta_EFD, slot, delta_FD):
    return delta_EFD.at[slot].add(delta_FD)
