"""NSE, neuron-level sequential editing (Jiang et al. 2025, arXiv 2410.04045): only the neurons that
speak for the facts change.

    delta W[s] = (lambda C[s, s] + S[s, s] + K[s] K[s]^T)^-1 K[s] R^T,     delta W = 0 elsewhere

s are the first neurons, by |k| summed over the batch, that hold no more than neuron_threshold of
its total; S = sum of K_p K_p^T over the edits before, with their keys as they are after their own
write. The values z are found on the model without any edit. The layers are written again for the
facts whose z is still more than alpha away, at most max_iterations - 1 times as released; a fact
whose z is upper_bound away or more is given up."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import Dense, Edit, LowRank, make_edit, to_dense, without_edits
from jaxedit.edits.request import Request
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.solving import multi_layer
from jaxedit.solving.key_history import KeyHistory, append, gram
from jaxedit.solving.keys import compute_values, pack_prompts
from jaxedit.solving.solve import KeyRegulariser, inverse_cholesky, shard_regulariser
from jaxedit.solving.value_cache import cached_values
from jaxedit.stats.second_moments import Stats

RECIPE = multi_layer.MethodSpec(
    whitener=lambda moment_FF, layer: inverse_cholesky(moment_FF),
    slack=lambda n: 1.0,
    history="after",
)


@dataclasses.dataclass(frozen=True)
class Hyper(multi_layer.MultiLayerHyper):
    """NSE's hyper-parameters, as released for GPT-J: `mom2_update_weight` is lambda.

    Attributes:
      neuron_threshold: the share of |k| that the neurons that may change hold; released: 0.8, 1 for
        Llama-3 and GPT-2 XL.
      alpha: the distance to z, in the residual stream's units, from which a fact is written; 2.5
        for Llama-3, 35 for GPT-2 XL.
      upper_bound: the distance from which it is given up; 50 for Llama-3, 150 for GPT-2 XL.
      max_iterations: one more than the most passes over the layers.
    """

    v_num_grad_steps: int = 25
    mom2_update_weight: float = 15000.0
    neuron_threshold: float = 0.8
    alpha: float = 15.0
    upper_bound: float = 100.0
    max_iterations: int = 3


class State(NamedTuple):
    """The templates, and C and S of each layer."""

    context_templates: tuple[tuple[str, ...], ...]
    pasts: Mapping[int, KeyHistory]


def make(hyper: Hyper) -> Editor:
    """NSE with these hyper-parameters."""
    return Editor(
        name="nse",
        hyper=hyper,
        slots=lambda model: {multi_layer.WEIGHT: tuple(hyper.layers)},
        init=functools.partial(init, hyper),
        edit=functools.partial(edit, hyper),
        restore=restore,
        context_templates=lambda state: state.context_templates,
    )


def init(hyper: Hyper, model: Model, stats: Stats | None) -> State:
    """Checks the hyper-parameters against the model and samples the templates.

    Raises:
      ValueError: on values that cannot be meant, or missing stats.
    """
    multi_layer.check_hyper(hyper, model)
    if not (
        0 < hyper.neuron_threshold <= 1
        and 0 <= hyper.alpha < hyper.upper_bound
        and hyper.max_iterations >= 2
    ):
        raise ValueError(
            f"neuron_threshold={hyper.neuron_threshold}, alpha={hyper.alpha}, upper_bound={hyper.upper_bound}, "
            f"max_iterations={hyper.max_iterations}: expected a share in (0, 1], 0 <= alpha < upper_bound, and at least 2 "
            "iterations (the last one only looks)"
        )
    moments = multi_layer.second_moments(hyper, model, stats)
    return State(
        multi_layer.context_templates(hyper, model),
        {layer: KeyHistory(moment_FF) for layer, moment_FF in moments.items()},
    )


def edit(
    hyper: Hyper, model: Model, requests: list[Request], state: State
) -> tuple[Edit, State, dict[str, float]]:
    """One edit of a batch of requests.

    Raises:
      ValueError: where no request's z is between alpha and upper_bound away, so that there is
        nothing to write.
    """
    groups, z_layer = state.context_templates, hyper.layers[-1]
    working = allocate_deltas(model, multi_layer.WEIGHT, tuple(hyper.layers))
    questions = pack_prompts(working, requests, groups, hyper.key_pooling, hyper.fact_token)
    found = cached_values(
        hyper, without_edits(working), requests, sum(groups, ()), z_layer, residual=True
    )
    z_ND = found.init_ND + found.delta_ND
    held_ND = compute_values(working, questions, z_layer)
    passes: list[multi_layer.LayerUpdates] = []
    for _ in range(hyper.max_iterations - 1):
        distance_N = np.linalg.norm(z_ND - held_ND, axis=1)
        due = np.flatnonzero((distance_N > hyper.alpha) & (distance_N < hyper.upper_bound))
        if not len(due):
            break
        asked = pack_prompts(
            working, [requests[n] for n in due], groups, hyper.key_pooling, hyper.fact_token
        )
        metric_of = functools.partial(metric, hyper, model.mesh, state)
        passes.append(
            multi_layer.update_layers(hyper, RECIPE, working, asked, z_ND[due], metric_of)
        )
        working = passes[-1].model
        held_ND = compute_values(working, questions, z_layer)
    if not passes:
        raise ValueError(
            f"the requests' z are {np.array2string(distance_N, precision=3, threshold=8)} away, none between "
            f"alpha={hyper.alpha:g} and upper_bound={hyper.upper_bound:g}: nothing to write; set these for this model's norms"
        )
    deltas = [
        _merged(of_layer) for of_layer in zip(*(written.deltas for written in passes), strict=True)
    ]
    made = make_edit(model, deltas, multi_layer.edit_memory(hyper, RECIPE, passes[-1], questions))
    info = multi_layer.edit_info(
        found, deltas, max(written.residual for written in passes), z_ND, held_ND
    )
    return (
        made,
        restore(state, made),
        {**info, "n_passes": len(passes), "z_distance": float(distance_N.max())},
    )


def restore(state: State, made: Edit) -> State:
    """The state after an edit whose keys are in its memory."""
    pasts = {
        layer: append(past, made.memory[f"keys/{layer}"]) for layer, past in state.pasts.items()
    }
    return state._replace(pasts=pasts)


def metric(
    hyper: Hyper, mesh: Mesh, state: State, layer: int, key_NF: np.ndarray
) -> KeyRegulariser:
    """M of a layer on the neurons of these keys: the whitener L^-1 in their columns, 0 in the
    others.
    """
    past, at = state.pasts[layer], neurons(key_NF, hyper.neuron_threshold)
    m_SS = hyper.mom2_update_weight * np.asarray(past.moment_FF, np.float64)[np.ix_(at, at)] + gram(
        past, at
    )
    whitener_SF = np.zeros((len(at), key_NF.shape[1]), np.float32)
    whitener_SF[:, at] = inverse_cholesky(m_SS)
    return shard_regulariser(mesh, whitener_SF)


def neurons(key_NF: np.ndarray, share: float) -> np.ndarray:
    """The neurons largest in |k|, as many as hold no more than a share of its total, in ascending
    order; at least one.
    """
    score_F = np.abs(key_NF.astype(np.float64)).sum(axis=0)
    order_F = np.argsort(-score_F, kind="stable")
    held_F = np.cumsum(score_F[order_F])
    return np.sort(order_F[: max(1, np.count_nonzero(held_F <= share * held_F[-1]))])


def _merged(deltas: tuple[LowRank | Dense, ...]) -> LowRank | Dense:
    """The sum of a layer's deltas as one."""
    weight, layer = deltas[0][:2]
    low_rank = [delta for delta in deltas if isinstance(delta, LowRank)]
    if len(low_rank) < len(deltas):
        return Dense(weight, layer, np.sum([to_dense(delta) for delta in deltas], axis=0))
    u_FR = np.concatenate([delta.u_FR for delta in low_rank], axis=1)
    return LowRank(weight, layer, u_FR, np.concatenate([delta.v_RD for delta in low_rank]))
