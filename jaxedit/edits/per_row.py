"""Edits side by side: a batch whose rows have a low-rank edit each, on one model.

Many edits are then measured in one call. The changes are never written out as matrices: a row's
term is (x u) v (`jaxedit.models.ops.add_delta`).
"""

from collections.abc import Sequence

import numpy as np

from jaxedit.edits.apply import check_shape
from jaxedit.edits.edit import Edit, LowRank
from jaxedit.mesh import shard_batch
from jaxedit.models.model import Model, with_bos, with_overlay
from jaxedit.models.ops import PerRowEdits, Slots


def with_per_row_edits(model: Model, edits: Sequence[Edit], edit_B: np.ndarray) -> Model:
    """Return the model with a low-rank edit of its own in each row of a batch.

    No matrix is written out, and no history kept.

    Args:
      model: with the edits that all rows have.
      edits: of the same weights and layers, none of them dense.
      edit_B: which edit a row has, for exactly the batches that this model is then used for.

    Raises:
      ValueError: where the edits are not alike, or not of this model.
    """
    places = {tuple((delta.weight, delta.layer) for delta in edit.deltas) for edit in edits}
    if len(places) != 1 or not all_low_rank(edits):
        raise ValueError(
            "edits that lie side by side in the rows of a batch "
            "must be low-rank changes of the same weights"
        )
    weights = dict.fromkeys(delta.weight for delta in edits[0].deltas)
    rows = {weight: _stack_factors(model, weight, edits, edit_B) for weight in weights}
    return with_overlay(model, model.overlay._replace(rows=rows))


def _stack_factors(
    model: Model, weight: str, edits: Sequence[Edit], edit_B: np.ndarray
) -> PerRowEdits:
    """Stack the factors of one weight's changes, padded with zeros to the highest rank.

    Args:
      model: that the edits are of.
      weight: which.
      edits: of the same layers of it, all low-rank.
      edit_B: which edit a row has.
    """
    deltas_of_edit = [
        [d for d in edit.deltas if isinstance(d, LowRank) and d.weight == weight] for edit in edits
    ]
    E, I = len(deltas_of_edit[0]), len(edits)  # one edit for each request
    rank = max(len(delta.v_RD) for deltas in deltas_of_edit for delta in deltas)
    _, F, D = model.base[weight].shape
    u_EIFR = np.zeros((E, I, F, rank), np.float32)
    v_EIRD = np.zeros((E, I, rank, D), np.float32)
    slots: dict[int, int] = {}
    for i, deltas in enumerate(deltas_of_edit):
        for e, delta in enumerate(deltas):
            check_shape(model, delta)
            slots[delta.layer] = e
            u_EIFR[e, i, :, : len(delta.v_RD)] = delta.u_FR
            v_EIRD[e, i, : len(delta.v_RD)] = delta.v_RD

    # Rows are split over `data` with their batch; the factors' own axes are whole on every device.
    u_EBFR = shard_batch(model.mesh, "_B__", u_EIFR[:, edit_B])
    v_EBRD = shard_batch(model.mesh, "_B__", v_EIRD[:, edit_B])
    slot_L = Slots(slots.get(layer, -1) for layer in range(model.config.L))
    return PerRowEdits(u_EBFR, v_EBRD, slot_L)


def all_low_rank(edits: Sequence[Edit]) -> bool:
    """Return whether none of the edits is dense."""
    return all(isinstance(delta, LowRank) for edit in edits for delta in edit.deltas)


def with_edit_tokenizer(model: Model, edits: Sequence[Edit]) -> Model:
    """Return the model with the tokenizer that edits need which it has in single rows only.

    These are not in its history, so its own tokenizer knows nothing of their anchor.
    """
    return with_bos(model) if any(edit.anchor for edit in edits) else model
