"""What can be done to any method's update before it is applied: against the growth of weights over
many edits.

    RECT   (2401.04700): of the entries of delta W only the share with the largest |delta W / W| is kept
    PRUNE  (2405.16821): the singular values s of the whole change since the unedited model that reach the largest one s_max of
           the unedited weight become log(s) - log(s_max) + s_max
    cap    |delta W| <= max_norm_ratio |W|, in the Frobenius norm

RECT and PRUNE make an update dense: a step of the journal then holds a whole matrix for each layer.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxedit.edits.edit import Dense, Edit, LowRank, to_dense
from jaxedit.mesh import to_host
from jaxedit.models.model import Model


@dataclasses.dataclass(frozen=True)
class UpdateConstraints:
    """What to do, in this order; None: not.

    Attributes:
      max_norm_ratio: the cap on |delta W| / |W|, W unedited.
      rect_keep: the share of entries that RECT keeps; published: 0.4.
      prune_log_base: the base of PRUNE's logarithm; published: e, and 1.2, 1.5, 2 as variants.
    """

    max_norm_ratio: float | None = None
    rect_keep: float | None = None
    prune_log_base: float | None = None

    def check(self) -> None:
        """Raises a ValueError on a number that cannot be meant."""
        if self.max_norm_ratio is not None and self.max_norm_ratio <= 0:
            raise ValueError(f"max_norm_ratio={self.max_norm_ratio}: expected a positive number")
        if self.rect_keep is not None and not 0 < self.rect_keep <= 1:
            raise ValueError(f"rect_keep={self.rect_keep}: expected a share over 0, at most 1")
        if self.prune_log_base is not None and self.prune_log_base <= 1:
            raise ValueError(
                f"prune_log_base={self.prune_log_base}: expected a number over 1, e.g. {math.e:.4f}"
            )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return self == UpdateConstraints()

    @property
    def is_dense(self) -> bool:
        """Whether the result is a whole matrix."""
        return self.rect_keep is not None or self.prune_log_base is not None


class ConstrainedState(NamedTuple):
    """The method's own state, and for PRUNE the largest singular value of each unedited weight."""

    inner: Any
    largest: Mapping[tuple[str, int], float]

    @property
    def context_templates(self) -> Any:
        """The method's."""
        return getattr(self.inner, "context_templates", None)


def init(
    constraints: UpdateConstraints, model: Model, inner: Any, slots: Mapping[str, tuple[int, ...]]
) -> ConstrainedState:
    """The state before the first edit."""
    if constraints.prune_log_base is None:
        return ConstrainedState(inner, {})
    places = [(weight, layer) for weight, layers in slots.items() for layer in layers]
    return ConstrainedState(
        inner, {place: float(np.linalg.norm(_base(model, *place), 2)) for place in places}
    )


def apply_to(
    constraints: UpdateConstraints,
    model: Model,
    edit: Edit,
    largest: Mapping[tuple[str, int], float],
) -> Edit:
    """The edit as it is applied to a model that has the edits before it."""
    return dataclasses.replace(
        edit, deltas=tuple(_changed(constraints, model, delta, largest) for delta in edit.deltas)
    )


def _changed(
    constraints: UpdateConstraints, model: Model, delta: LowRank | Dense, largest
) -> LowRank | Dense:
    weight, layer = delta.weight, delta.layer
    base_FD = _base(model, weight, layer)
    if constraints.max_norm_ratio is not None:
        ratio = float(np.linalg.norm(to_dense(delta)) / np.linalg.norm(base_FD))
        delta = _scaled(delta, min(1.0, constraints.max_norm_ratio / ratio) if ratio else 1.0)
    if not constraints.is_dense:
        return delta
    change_FD, edited_FD = to_dense(delta), _overlay(model, weight, layer)
    if constraints.rect_keep is not None:
        share_FD = np.abs(change_FD) / np.maximum(
            np.abs(base_FD + edited_FD), np.finfo(np.float32).tiny
        )
        n_kept = max(1, round(constraints.rect_keep * share_FD.size))
        change_FD = np.where(
            share_FD >= np.partition(share_FD, -n_kept, axis=None)[-n_kept], change_FD, 0
        )
    if constraints.prune_log_base is not None:
        whole_FD = prune_spectrum(
            edited_FD + change_FD, largest[weight, layer], constraints.prune_log_base
        )
        change_FD = whole_FD - edited_FD
    return Dense(weight, layer, change_FD.astype(np.float32))


def prune_spectrum(change_FD: np.ndarray, largest: float, base: float) -> np.ndarray:
    """PRUNE's condition on a whole change: its singular values from `largest` on grow only as a
    logarithm.
    """
    u, value, v = np.linalg.svd(change_FD.astype(np.float64), full_matrices=False)
    restrained = np.where(
        value >= largest,
        np.log(np.maximum(value, largest) / largest) / np.log(base) + largest,
        value,
    )
    return ((u * restrained) @ v).astype(np.float32)


def _scaled(delta: LowRank | Dense, factor: float) -> LowRank | Dense:
    if isinstance(delta, Dense):
        return delta._replace(delta_FD=np.asarray(delta.delta_FD * np.float32(factor)))
    return delta._replace(v_RD=np.asarray(delta.v_RD * np.float32(factor)))


def _base(model: Model, weight: str, layer: int) -> np.ndarray:
    return np.asarray(to_host(model.base[weight][layer]), np.float32)


def _overlay(model: Model, weight: str, layer: int) -> np.ndarray:
    """What the kept edits changed so far [F, D]."""
    slot = int(model.overlay.slot[weight][layer]) if weight in model.overlay.slot else -1
    return (
        to_host(model.overlay.delta[weight][slot])
        if slot >= 0
        else np.zeros(model.base[weight].shape[1:], np.float32)
    )
