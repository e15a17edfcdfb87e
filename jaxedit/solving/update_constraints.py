"""Constraints on any method's update before it is applied, against weights that grow edit by edit.

    RECT   (2401.04700): of the entries of delta W only the share with the largest |delta W / W| is
           kept
    PRUNE  (2405.16821): the singular values s of the whole change since the unedited model that
           reach the largest one s_max of the unedited weight become log(s) - log(s_max) + s_max
    SPHERE (2510.01172): an update leaves out a part of what lies along the weight's neurons
           (`jaxedit.solving.sphere`)
    cap    |delta W| <= max_norm_ratio |W|, in the Frobenius norm

PRUNE's authors apply it once, at the end of a sequence of edits: `prune`. As a constraint it acts
after every edit, on the change so far, and later edits are made on the restrained weights; after
one edit the two agree.

RECT and PRUNE make an update dense: a step of the journal then holds a whole matrix for each layer.
The others leave a low-rank update low-rank.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

from jaxedit.edits.edit import (
    Dense,
    Edit,
    LowRank,
    delta_norm,
    make_edit,
    places_of,
    scale_delta,
    to_dense,
)
from jaxedit.edits.weights import base_weight, sum_of_edits
from jaxedit.models.model import Model
from jaxedit.solving import sphere
from jaxedit.solving.ranges import OVER_ONE, POSITIVE, SHARE, check_ranges
from jaxedit.solving.sphere import SphereHyper

TINY = np.finfo(np.float32).tiny


@dataclasses.dataclass(frozen=True)
class UpdateConstraints(SphereHyper):
    """Constraints on an update, applied in this order, SPHERE last; None leaves one out.

    Attributes:
      max_norm_ratio: the cap on |delta W| / |W|, W unedited.
      rect_keep: the share of entries that RECT keeps; published: 0.4.
      prune_log_base: the base of PRUNE's logarithm, after every edit; published, at the end (see
        `prune`): e, and 1.2, 1.5, 2 as variants.
    """

    max_norm_ratio: Annotated[float | None, POSITIVE] = None
    rect_keep: Annotated[float | None, SHARE] = None
    prune_log_base: Annotated[float | None, OVER_ONE] = None

    @property
    def is_empty(self) -> bool:
        """Whether there is no constraint."""
        return self.sphere_share is None and self.max_norm_ratio is None and not self.is_dense

    @property
    def is_dense(self) -> bool:
        """Whether the result is a whole matrix."""
        return self.rect_keep is not None or self.prune_log_base is not None


class ConstrainedState(NamedTuple):
    """The state of a method with constraints.

    Attributes:
      inner: the method's own state.
      largest: for PRUNE, the largest singular value of each unedited weight by weight and layer.
    """

    inner: Any
    largest: Mapping[tuple[str, int], float]

    @property
    def context_templates(self) -> Any:
        """The templates that the method edits with, as its own state has them."""
        return self.inner.context_templates


def init(
    constraints: UpdateConstraints, model: Model, inner: Any, slots: Mapping[str, tuple[int, ...]]
) -> ConstrainedState:
    """Return the state before the first edit.

    Args:
      constraints: which.
      model: whose base weights PRUNE compares with.
      inner: the method's own state.
      slots: weight -> layers that edits change.
    """
    if constraints.prune_log_base is None:
        return ConstrainedState(inner, {})
    largest = {
        place: float(np.linalg.norm(base_weight(model, *place), 2)) for place in places_of(slots)
    }
    return ConstrainedState(inner, largest)


def apply_to(
    constraints: UpdateConstraints,
    model: Model,
    edit: Edit,
    largest: Mapping[tuple[str, int], float],
) -> Edit:
    """Constrain an edit.

    Args:
      constraints: which.
      model: with the edits before this one.
      edit: as the method makes it.
      largest: as in `ConstrainedState`.
    """
    deltas = [_constrain(constraints, model, delta, largest) for delta in edit.deltas]
    return dataclasses.replace(edit, deltas=tuple(deltas))


def _constrain(
    constraints: UpdateConstraints, model: Model, delta: LowRank | Dense, largest
) -> LowRank | Dense:
    weight, layer = delta.weight, delta.layer

    # The cap; it leaves an update what it is, low-rank or dense.
    if constraints.max_norm_ratio is not None:
        base_FD = base_weight(model, weight, layer)
        ratio = delta_norm(delta) / float(np.linalg.norm(base_FD))
        delta = scale_delta(delta, min(1.0, constraints.max_norm_ratio / ratio) if ratio else 1.0)
    if constraints.is_dense:
        delta = _restrain(constraints, model, delta, largest)
    return sphere.project(constraints, model, delta)


def _restrain(
    constraints: UpdateConstraints, model: Model, delta: LowRank | Dense, largest
) -> Dense:
    """Make of an update what RECT and PRUNE leave of it."""
    weight, layer = delta.weight, delta.layer
    change_FD, edited_FD = to_dense(delta), sum_of_edits(model, weight, layer)

    # RECT: relative to the weight as it is edited so far.
    if constraints.rect_keep is not None:
        weight_FD = np.abs(base_weight(model, weight, layer) + edited_FD)
        share_FD = np.abs(change_FD) / np.maximum(weight_FD, TINY)
        n_kept = max(1, share_FD.size - int(share_FD.size * (1 - constraints.rect_keep)))
        smallest_kept = np.partition(share_FD, -n_kept, axis=None)[-n_kept]
        change_FD = np.where(share_FD >= smallest_kept, change_FD, 0)

    # PRUNE: on the whole change, of which this update is what the edits so far are not.
    if constraints.prune_log_base is not None:
        whole_FD = edited_FD + change_FD
        pruned_FD = prune_spectrum(whole_FD, largest[weight, layer], constraints.prune_log_base)
        change_FD = pruned_FD - edited_FD
    return Dense(weight, layer, change_FD.astype(np.float32))


def prune(model: Model, log_base: float = math.e) -> Edit:
    """Restrain all that edits changed, once, at the end of a sequence: PRUNE as published.

    Args:
      model: with the edits of the sequence, made without `prune_log_base`.
      log_base: of the logarithm.

    Returns:
      The restrained change as an edit of the model without edits, to be applied to that or saved.

    Raises:
      ValueError: on a base that is not over 1, or a model without edits.
    """
    check_ranges(UpdateConstraints(prune_log_base=float(log_base)))
    edits = model.metadata.history
    if not edits:
        raise ValueError(f"{model.metadata.source} has no edits that could be restrained")
    deltas = []
    for weight, layer in dict.fromkeys(delta[:2] for edit in edits for delta in edit.deltas):
        largest = float(np.linalg.norm(base_weight(model, weight, layer), 2))
        change_FD = sum_of_edits(model, weight, layer)
        deltas.append(Dense(weight, layer, prune_spectrum(change_FD, largest, log_base)))
    return dataclasses.replace(make_edit(model, deltas), anchor=edits[-1].anchor)


def prune_spectrum(change_FD: np.ndarray, largest: float, base: float) -> np.ndarray:
    """Let a change's singular values grow only as a logarithm beyond a largest one: PRUNE.

    Args:
      change_FD: the whole change of a weight.
      largest: s_max, the largest singular value of the unedited weight.
      base: of the logarithm.
    """
    u, value, v = np.linalg.svd(change_FD.astype(np.float64), full_matrices=False)
    excess = np.log(np.maximum(value, largest) / largest) / np.log(base)
    restrained = np.where(value >= largest, excess + largest, value)
    return ((u * restrained) @ v).astype(np.float32)
