"""NSE, neuron-level sequential editing (Jiang et al. 2025, arXiv 2410.04045).

    delta W[s] = (lambda C[s, s] + S[s, s] + K[s] K[s]^T)^-1 K[s] R^T,     delta W = 0 elsewhere

Only the neurons s that speak for the facts change: the first ones, by |k| summed over the batch,
that hold no more than neuron_threshold of its total. S = sum of K_p K_p^T over the edits before,
with their keys as the last pass leaves them. The values z are found on the model without any
edit. The layers are written again for the facts whose z is still more than alpha away, at most
max_iterations - 1 times as released; a fact whose z is upper_bound away or more is given up.

The released evaluation optimises z for the target without the space before it, as the record has
it: leading_space="separate-no-space".
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.editors._base import Editor
from jaxedit.edits.apply import without_edits
from jaxedit.edits.edit import EDITED_WEIGHT, Dense, Edit, LowRank, make_edit, to_dense
from jaxedit.edits.request import Request
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.solving import multi_layer
from jaxedit.solving.edit_info import edit_info
from jaxedit.solving.hyper import MultiLayerHyper
from jaxedit.solving.key_history import KeyHistory, append, gram
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.multi_layer import LayerUpdates, MethodSpec
from jaxedit.solving.norm_anchor import anchor_norm, find_values
from jaxedit.solving.packed_prompts import pack_prompts
from jaxedit.solving.ranges import AT_LEAST_ONE, POSITIVE, SHARE
from jaxedit.solving.regulariser import KeyRegulariser, shard_folded
from jaxedit.solving.site import Site
from jaxedit.solving.solve import least_change
from jaxedit.solving.whiteners import inverse_cholesky
from jaxedit.stats.second_moments import Stats

SPEC = MethodSpec(
    whitener=lambda moment_FF, layer: inverse_cholesky(moment_FF),
    slack=lambda n_keys: 1.0,
    history=True,
)


@dataclasses.dataclass(frozen=True)
class Hyper(MultiLayerHyper):
    """NSE's hyper-parameters, as released for GPT-J: `mom2_update_weight` is lambda.

    Attributes:
      neuron_threshold: the share of |k| that the neurons that may change hold; released: 0.8, 1 for
        Llama-3 and GPT-2 XL.
      alpha: the distance to z, in the residual stream's units, from which a fact is written; 2.5
        for Llama-3, 35 for GPT-2 XL.
      upper_bound: the distance from which it is given up; 50 for Llama-3, 150 for GPT-2 XL.
      max_iterations: one more than the most passes over the layers.
    """

    v_num_grad_steps: Annotated[int, AT_LEAST_ONE] = 25
    mom2_update_weight: Annotated[float, POSITIVE] = 15000.0
    neuron_threshold: Annotated[float, SHARE] = 0.8
    alpha: float = 15.0
    upper_bound: Annotated[float, POSITIVE] = 100.0
    max_iterations: int = 3


class State(NamedTuple):
    """What an edit needs besides the model.

    Attributes:
      context_templates: in groups, given or sampled.
      histories: layer -> C and S.
      anchor_norm: the norm that NAS gives values; None: it is off.
    """

    context_templates: tuple[tuple[str, ...], ...]
    histories: Mapping[int, KeyHistory]
    anchor_norm: float | None = None


def make(hyper: Hyper) -> Editor:
    """Make the NSE editor of these hyper-parameters."""
    return Editor(
        name="nse",
        hyper=hyper,
        slots=lambda model: {EDITED_WEIGHT: tuple(hyper.layers)},
        init=functools.partial(init, hyper),
        edit=functools.partial(edit, hyper),
        restore=restore,
        context_templates=lambda state: state.context_templates,
    )


def init(hyper: Hyper, model: Model, stats: Stats | None) -> State:
    """Check the hyper-parameters against the model and sample the templates.

    Raises:
      ValueError: on values that cannot be meant, or missing stats.
    """
    hyper.check(model)
    if hyper.alpha >= hyper.upper_bound or hyper.max_iterations < 2:
        raise ValueError(
            f"alpha={hyper.alpha}, upper_bound={hyper.upper_bound}, "
            f"max_iterations={hyper.max_iterations}: expected alpha < upper_bound, and at least 2 "
            "iterations (the last one only looks)"
        )
    moments = multi_layer.second_moments(hyper, model, stats)
    histories = {layer: KeyHistory(moment_FF) for layer, moment_FF in moments.items()}
    norm = anchor_norm(hyper, model, stats, hyper.layers[-1])
    return State(multi_layer.context_templates(hyper, model), histories, norm)


def edit(
    hyper: Hyper, model: Model, requests: list[Request], state: State
) -> tuple[Edit, State, dict[str, float]]:
    """Make one edit of a batch of requests.

    Where no request's z is between alpha and upper_bound away, as where all facts hold already, the
    edit changes nothing and its keys are added to S all the same, as released.

    Raises:
      ValueError: without requests.
    """
    if not requests:
        raise ValueError("an edit needs at least one request")
    groups, z_layer = state.context_templates, hyper.layers[-1]
    working = allocate_deltas(model, EDITED_WEIGHT, tuple(hyper.layers))
    packed = pack_prompts(working, requests, groups, hyper.key_pooling, hyper.fact_token)

    # The values z, as the model without any edit would have them.
    unedited, templates = without_edits(working), sum(groups, ())
    found = find_values(
        hyper, unedited, requests, templates, z_layer, Site.RESIDUAL, state.anchor_norm
    )
    values = found.values
    z_ID = values.init_ID + values.delta_ID

    # Passes over the layers, each for the requests that the passes before left too far from z.
    solve_layer = functools.partial(solve_neurons, hyper, state)
    reached_ID = compute_values(working, packed, z_layer)
    distance_I = np.linalg.norm(z_ID - reached_ID, axis=1)
    passes: list[LayerUpdates] = []
    for _ in range(hyper.max_iterations - 1):
        is_far_I = (distance_I > hyper.alpha) & (distance_I < hyper.upper_bound)
        far = np.flatnonzero(is_far_I)
        if not len(far):
            break
        far_requests = [requests[i] for i in far]
        packed_far = pack_prompts(
            working, far_requests, groups, hyper.key_pooling, hyper.fact_token
        )
        passes.append(
            multi_layer.update_layers(hyper, SPEC, working, packed_far, z_ID[far], solve_layer)
        )
        working = passes[-1].model
        reached_ID = compute_values(working, packed, z_layer)
        distance_I = np.linalg.norm(z_ID - reached_ID, axis=1)

    # One delta a layer, and the keys of all requests after the last pass for S.
    deltas: list[LowRank | Dense] = [_no_change(model, layer) for layer in hyper.layers]
    if passes:
        by_layer = zip(*(updates.deltas for updates in passes), strict=True)
        deltas = [_sum(of_layer) for of_layer in by_layer]
    keys = {layer: compute_keys(working, packed, layer)[0] for layer in hyper.layers}
    made = make_edit(model, deltas, multi_layer.edit_memory(keys))
    residual = max((updates.residual for updates in passes), default=0.0)
    info = edit_info(values, deltas, residual, z_ID, reached_ID)
    info |= found.info | {"n_passes": len(passes), "z_distance": float(distance_I.max())}
    return made, restore(state, made), info


def restore(state: State, made: Edit) -> State:
    """Return the state after an edit whose keys are in its memory."""
    histories = {
        layer: append(past, made.memory[f"keys/{layer}"]) for layer, past in state.histories.items()
    }
    return state._replace(histories=histories)


def solve_neurons(
    hyper: Hyper,
    state: State,
    model: Model,
    layer: int,
    key_IF: np.ndarray,
    residual_ID: np.ndarray,
) -> tuple[LowRank | Dense, float]:
    """Solve for a layer's update on the neurons that the keys choose, and its relative residual."""
    regulariser = neuron_regulariser(hyper, model.mesh, state, layer, key_IF)
    return least_change(
        regulariser, EDITED_WEIGHT, layer, key_IF.T, residual_ID, 1.0, hyper.solve_dtype
    )


def neuron_regulariser(
    hyper: Hyper, mesh: Mesh, state: State, layer: int, key_IF: np.ndarray
) -> KeyRegulariser:
    """Make M of a layer on the neurons that these keys choose; the others then do not change.

    Its whitener selects them. L^-1 stays in float64, as past keys are in all of M.
    """
    past, chosen = state.histories[layer], choose_neurons(key_IF, hyper.neuron_threshold)
    c_MM = np.asarray(past.moment_FF, np.float64)[np.ix_(chosen, chosen)]
    m_MM = hyper.mom2_update_weight * c_MM + gram(past, chosen)
    F, M = key_IF.shape[1], len(chosen)
    selection_MF = np.zeros((M, F), np.float32)
    selection_MF[np.arange(M), chosen] = 1
    return shard_folded(mesh, selection_MF, inverse_cholesky(m_MM, dtype=np.float64))


def choose_neurons(key_IF: np.ndarray, share: float) -> np.ndarray:
    """Choose the neurons largest in |k|, at least one.

    Args:
      key_IF: keys of the batch, over which |k| is summed.
      share: of the total of |k| that the chosen ones hold no more than.

    Returns:
      Their indices in ascending order.
    """
    score_F = np.abs(key_IF.astype(np.float64)).sum(axis=0)
    order_F = np.argsort(-score_F, kind="stable")
    sum_F = np.cumsum(score_F[order_F])
    n_chosen = max(1, np.count_nonzero(sum_F <= share * sum_F[-1]))
    return np.sort(order_F[:n_chosen])


def _no_change(model: Model, layer: int) -> LowRank:
    F, D = model.config.F, model.config.D
    return LowRank(EDITED_WEIGHT, layer, np.zeros((F, 1), np.float32), np.zeros((1, D), np.float32))


def _sum(deltas: tuple[LowRank | Dense, ...]) -> LowRank | Dense:
    """Sum up a layer's deltas: low-rank ones side by side."""
    weight, layer = deltas[0][:2]
    low_rank = [delta for delta in deltas if isinstance(delta, LowRank)]
    if len(low_rank) < len(deltas):
        return Dense(weight, layer, np.sum([to_dense(delta) for delta in deltas], axis=0))
    u_FR = np.concatenate([delta.u_FR for delta in low_rank], axis=1)
    v_RD = np.concatenate([delta.v_RD for delta in low_rank])
    return LowRank(weight, layer, u_FR, v_RD)
