"""Edits added to a model and taken out again, exactly.

The base weights are never written. Applying adds an edit's change in float32 to the overlay;
undoing sums the remaining edits anew from zero, since (a + b) - b is not a. Both run the same
compiled addition in the same order, so undoing is bit-exact, and so is rebuilding a model from its
journal.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxedit.edits.edit import EDITABLE_WEIGHTS, Dense, Edit, LowRank
from jaxedit.models.model import Model, allocate_deltas, with_overlay
from jaxedit.models.ops import PRECISION, Overlay, Slots


def allocate_for(model: Model, edit: Edit) -> Model:
    """Return the model with room in its overlay for an edit.

    Raises:
      ValueError: where it changes a weight or layer that cannot be edited.
    """
    editable = [weight for weight in EDITABLE_WEIGHTS if weight in model.base]
    for weight in dict.fromkeys(delta.weight for delta in edit.deltas):
        if weight not in editable:
            raise ValueError(
                f"the edit changes the weight {weight[:80]!r}; of {model.metadata.source} can be "
                f"edited: {', '.join(editable)}"
            )
        layers = sorted({delta.layer for delta in edit.deltas if delta.weight == weight})
        model = allocate_deltas(model, weight, tuple(layers))
    return model


def apply(model: Model, edit: Edit) -> Model:
    """Return a new model with the edit added; `model` is unchanged.

    Raises:
      ValueError: where the edit was made on other base weights, or its shapes are not those of the
        model's.
    """
    return apply_all(model, [edit])


def apply_all(model: Model, edits: Sequence[Edit]) -> Model:
    """Return a new model with edits added in this order; `model` is unchanged.

    The same bits as by `apply` one after the other, and the overlay is copied once instead of for
    every delta.

    Raises:
      ValueError: where an edit was made on other base weights, or its shapes are not those of the
        model's.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            kind = type(edit).__name__
            raise ValueError(f"expected one edit to apply, got a {kind}: apply each by itself")
        check_base(model, edit)
        model = allocate_for(model, edit)
        for delta in edit.deltas:
            check_shape(model, delta)
    delta_of, slot_of = dict(model.overlay.delta), model.overlay.slot
    own: set[str] = set()  # weights whose array was made here: it may be written over
    for delta in (delta for edit in edits for delta in edit.deltas):
        slot = int(slot_of[delta.weight][delta.layer])
        delta_EFD = delta_of[delta.weight]
        if isinstance(delta, Dense):
            add = _add_dense_in_place if delta.weight in own else _add_dense
            delta_of[delta.weight] = add(delta_EFD, slot, delta.delta_FD)
        else:
            add = _add_low_rank_in_place if delta.weight in own else _add_low_rank
            delta_of[delta.weight] = add(delta_EFD, slot, delta.u_FR, delta.v_RD)
        own.add(delta.weight)
    overlay = Overlay(delta_of, slot_of)
    return _with_edits(model, overlay, (*model.metadata.history, *edits))


def apply_saved(model: Model, edit: Edit, path: object) -> Model:
    """Return a new model with an edit that was read from a file added; errors name the file.

    Raises:
      ValueError: as `apply` does.
    """
    try:
        return apply(model, edit)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_base(model: Model, edit: Edit) -> None:
    """Check that an edit was made on this model's base weights, where it says on which.

    Raises:
      ValueError: where it was made on others.
    """
    if edit.base is not None and edit.base != model.rounded_fingerprint:
        raise ValueError(
            f"the edit was made on weights with the fingerprint {edit.base}, those of "
            f"{model.metadata.source} have {model.rounded_fingerprint}: load the model that was "
            "edited, or make the edit anew on this one"
        )


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
    return apply_all(_with_edits(model, Overlay(zeros, model.overlay.slot), ()), edits)


def _with_edits(model: Model, overlay: Overlay, history: tuple[Edit, ...]) -> Model:
    return with_overlay(model, overlay, dataclasses.replace(model.metadata, history=history))


def _sum_low_rank(delta_EFD, slot, u_FR, v_RD):
    return delta_EFD.at[slot].add(jnp.matmul(u_FR, v_RD, precision=PRECISION))


def _sum_dense(delta_EFD, slot, delta_FD):
    return delta_EFD.at[slot].add(delta_FD)


_add_low_rank, _add_dense = jax.jit(_sum_low_rank), jax.jit(_sum_dense)
_add_low_rank_in_place = jax.jit(_sum_low_rank, donate_argnums=0)
_add_dense_in_place = jax.jit(_sum_dense, donate_argnums=0)
