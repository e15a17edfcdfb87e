"""Edits of MEMIT's family whose layers are solved once each: K, R, M and g give the update.

Beside the requests' keys and residuals the solver is given those that are added
(`jaxedit.solving.key_constraints`), and what it gives is projected where texts are not to be harmed
(`jaxedit.solving.harm`). Keys of other subjects can be so like a request's own that with them its
value cannot be written: where it is missed by more than MOST_MISSED, they are left out. What is
missed without them too is left so: writing it all the same breaks the model.
"""

import numpy as np

from jaxedit.edits.edit import EDITED_WEIGHT, Dense, Edit, LowRank, make_edit
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.solving.harm import Projected, harm_info, project_harm
from jaxedit.solving.hyper import ClosedFormHyper, MultiLayerHyper
from jaxedit.solving.key_constraints import KeyConstraints, add_constraints, pack_constraints
from jaxedit.solving.multi_layer import (
    MethodSpec,
    MultiLayerState,
    edit_memory,
    restore,
    write_batch,
)
from jaxedit.solving.solve import least_change

MOST_MISSED = 0.5  # z_miss, with the keys of other subjects


def edit(
    hyper: MultiLayerHyper,
    spec: MethodSpec,
    model: Model,
    requests: list[Request],
    state: MultiLayerState,
) -> tuple[Edit, MultiLayerState, dict[str, float]]:
    """Make one edit of a batch of requests; where the method has a history the state grows by it.

    Raises:
      ValueError: without requests, or where one is longer than the model's positions.
    """
    if not isinstance(hyper, ClosedFormHyper) or not requests:
        return _edit(hyper, spec, model, requests, state, KeyConstraints(None, None))
    constraints = pack_constraints(
        model, requests, hyper.fact_token, hyper.bare_key, hyper.preserved_subjects
    )
    if constraints.preserved is None:
        return _edit(hyper, spec, model, requests, state, constraints)
    made, after, info = _edit(hyper, spec, model, requests, state, constraints)
    if info["z_miss"] <= MOST_MISSED:
        return made, after, info | {"n_preserved": constraints.preserved.n_requests}
    alone = constraints._replace(preserved=None)
    made, after, info = _edit(hyper, spec, model, requests, state, alone)
    return made, after, info | {"n_preserved": 0}


def _edit(
    hyper: MultiLayerHyper,
    spec: MethodSpec,
    model: Model,
    requests: list[Request],
    state: MultiLayerState,
    constraints: KeyConstraints,
) -> tuple[Edit, MultiLayerState, dict[str, float]]:
    """Make an edit with these keys added."""
    projected: list[Projected] = []
    keys: dict[int, np.ndarray] = {}

    def solve_layer(
        model: Model, layer: int, key_IF: np.ndarray, residual_ID: np.ndarray
    ) -> tuple[LowRank | Dense, float]:
        key_IF, residual_ID = add_constraints(model, layer, constraints, key_IF, residual_ID)
        keys[layer] = key_IF
        regulariser, slack = state.regularisers[layer], spec.slack(len(key_IF))
        delta, residual = least_change(
            regulariser, EDITED_WEIGHT, layer, key_IF.T, residual_ID, slack, hyper.solve_dtype
        )
        if state.harm is not None:  # with what the layers below do to the texts
            below = sum((each.after for each in projected), np.zeros(()))
            projected.append(project_harm(state.harm, regulariser, delta, key_IF.T, below))
            delta = projected[-1].delta
        return delta, residual

    updates, info = write_batch(hyper, spec, model, requests, state, solve_layer)
    memory = edit_memory(keys) if spec.history else {}
    made = make_edit(model, updates.deltas, memory)
    return made, restore(state, made), info | harm_info(projected)
