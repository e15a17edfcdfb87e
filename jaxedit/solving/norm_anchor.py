"""NAS, norm-anchor scaling (2602.02543), as its authors' code does it.

    v* = v0 + delta                              v0: the MLP's output at the bare prompt
    v* <- v0                                     where |v*| > limit m: the fact is skipped
    v* <- m v* / |v*|                            elsewhere
    z  = (h - v0) + v*                           of methods that write the residual stream h

m is one number of a layer: the mean |v*| of a thousand facts, optimised one by one at their bare
prompts on the unedited model with MEMIT's values, without the largest twentieth. The limit is 2,
and 5 for ROME. A skipped fact is not edited: its key counts, its value stays what it was.

`keep_unedited_norm` is another thing: it gives h + delta the norm that the unedited model's h has.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxedit.edits.apply import without_edits
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.solving.hyper import TargetHyper, ValueHyper
from jaxedit.solving.site import Site
from jaxedit.solving.value import OptimisedValues, optimise_values
from jaxedit.solving.value_cache import cached_values
from jaxedit.stats.second_moments import Stats
from jaxedit.stats.value_norm import ValueNorm

SKIP_LIMITS = {Site.MLP: 5.0, Site.RESIDUAL: 2.0, Site.MLP_WITH_ATTENTION: 2.0}
REQUESTS_PER_CALL = 100  # are measured at a time


class FoundValues(NamedTuple):
    """The values of I requests, anchored where the method is to.

    Attributes:
      values: with the deltas that are to be written.
      is_skipped_I: which requests NAS skips; None: it is off.
    """

    values: OptimisedValues
    is_skipped_I: np.ndarray | None = None

    @property
    def info(self) -> dict[str, float]:
        """How many facts NAS skipped, where it is on, for an edit's numbers."""
        if self.is_skipped_I is None:
            return {}
        return {"n_skipped_facts": int(np.count_nonzero(self.is_skipped_I))}


def anchor_norm(hyper: ValueHyper, model: Model, stats: Stats | None, layer: int) -> float | None:
    """Return m of the layer at which values are defined; None where NAS is off.

    Raises:
      ValueError: where it is neither given nor in the statistics, or these are of another model.
    """
    if not hyper.norm_anchor_scaling:
        return None
    if hyper.norm_anchor_value is not None:
        return hyper.norm_anchor_value
    if stats is None or layer not in stats.value_norms:
        raise ValueError(
            f"norm_anchor_scaling needs the mean norm of values at layer {layer}: give "
            "norm_anchor_value=, or stats= that hold it (jaxedit stats --value_norm, whose last "
            f"layer is {layer}, makes them)"
        )
    return stats.value_norm_of(model, layer)


def find_values(
    hyper: ValueHyper,
    model: Model,
    requests: list[Request],
    templates: tuple[str, ...],
    layer: int,
    site: Site,
    norm: float | None,
) -> FoundValues:
    """Optimise the values of requests or read kept ones, and scale them as NAS does.

    Args:
      hyper: of the method.
      model: with the edits so far.
      requests: at least one.
      templates: the first one is the bare prompt.
      layer: the vector is added to this layer's output.
      site: what the values are.
      norm: m; None: NAS is off.
    """
    values = cached_values(hyper, model, requests, templates, layer, site)
    if norm is None:
        return FoundValues(values)
    v0_ID = values.value_ICD[:, 0]
    value_ID = v0_ID + values.delta_ID
    norm_I1 = np.linalg.norm(value_ID, axis=1, keepdims=True)
    is_skipped_I1 = norm_I1 > SKIP_LIMITS[site] * norm
    tiny = np.finfo(np.float32).tiny
    delta_ID = np.where(is_skipped_I1, 0, value_ID * norm / np.maximum(norm_I1, tiny) - v0_ID)
    anchored = values._replace(delta_ID=delta_ID.astype(np.float32))
    return FoundValues(anchored, is_skipped_I1[:, 0])


def measure_value_norm(
    model: Model,
    requests: list[Request],
    layer: int,
    hyper: TargetHyper,
    on_requests: Callable[[int], None] = lambda n_done: None,
) -> ValueNorm:
    """Measure m of a layer on the unedited model.

    The authors optimise sixteen facts together, and stop them all at a mean loss of 0.05; here each
    stops by itself.

    Args:
      model: its edits do not count.
      requests: a thousand as published.
      layer: after which the vector is added.
      hyper: MEMIT's.
      on_requests: called with the number of requests that are done.

    Raises:
      ValueError: on fewer than two requests.
    """
    unedited = without_edits(model) if model.metadata.history else model
    norms = []
    for first in range(0, len(requests), REQUESTS_PER_CALL):
        some = requests[first : first + REQUESTS_PER_CALL]
        values = optimise_values(unedited, some, ("{}",), layer, hyper, Site.RESIDUAL)
        norms.append(np.linalg.norm(values.value_ICD[:, 0] + values.delta_ID, axis=1))
        on_requests(first + len(some))
    return ValueNorm.from_norms(np.concatenate(norms) if norms else np.zeros(0))
