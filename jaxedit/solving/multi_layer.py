"""Edits of many facts spread over several layers: MEMIT, EMMET, AlphaEdit and their relatives.

The values z are found once, for the residual stream after the last edited layer (2210.07229, eq.
16). Then for each layer l_1 < ... < l_L in turn, with the layers before already written,

    K     the keys of the requests at this layer, pooled over their context templates
    R     (z - what the bare prompts now hold after l_L) / divisor(layers still to write, this one
          included); behind a post-norm, what the MLP must put out more for that
          (jaxedit.solving.post_norm)
    D     the update for keys K and values R (jaxedit.solving.closed_form: the solver's under this
          layer's M and g)

The methods differ in M, g, the divisor, whether z is the residual stream or the MLP's output, and
what they keep of K for later edits.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxedit.edits.apply import apply
from jaxedit.edits.edit import EDITED_WEIGHT, Dense, Edit, LowRank, make_edit
from jaxedit.edits.request import Request
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.solving.edit_info import edit_info
from jaxedit.solving.finite import check_finite, check_finite_delta
from jaxedit.solving.harm_texts import HarmTexts
from jaxedit.solving.hyper import MultiLayerHyper
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.norm_anchor import anchor_norm, find_values
from jaxedit.solving.packed_prompts import PackedPrompts, pack_prompts
from jaxedit.solving.post_norm import change_of_values
from jaxedit.solving.regulariser import KeyRegulariser, shard_regulariser
from jaxedit.solving.site import Site
from jaxedit.solving.solve import add_past_keys
from jaxedit.solving.templates import sample_groups
from jaxedit.stats.second_moments import Stats


def leave_as_it_is(model: Model, delta: LowRank | Dense) -> LowRank | Dense:
    """Return a layer's update."""
    return delta


class MethodSpec(NamedTuple):
    """What makes a method of the family.

    Attributes:
      whitener: (second moment [F, F], layer) -> whitener [M, F] of the layer's M without history.
      slack: (number of columns of K) -> g, the slack on the constraint K^T D = R. K also holds the
        keys of `bare_key` and `preserved_subjects`.
      history: whether M grows by the keys of past edits.
      residual_divisor: (layers still to write, this one included) -> what the residual is divided
        by at this layer.
      site: what z is, after the last edited layer.
      constrain: (model, a layer's update) -> the update that is written before the layers above are
        looked at.
    """

    whitener: Callable[[np.ndarray, int], np.ndarray]
    slack: Callable[[int], float]
    history: bool = False
    residual_divisor: Callable[[int], float] = float
    site: Site = Site.RESIDUAL
    constrain: Callable[[Model, LowRank | Dense], LowRank | Dense] = leave_as_it_is


class MultiLayerState(NamedTuple):
    """What an edit needs besides the model.

    Attributes:
      context_templates: in groups, given or sampled.
      regularisers: layer -> M, with what past edits left in it.
      anchor_norm: the norm that NAS gives values; None: it is off.
      harm: the texts that edits are not to harm; None: they are left as they are.
    """

    context_templates: tuple[tuple[str, ...], ...]
    regularisers: Mapping[int, KeyRegulariser]
    anchor_norm: float | None = None
    harm: HarmTexts | None = None


LayerSolver = Callable[[Model, int, np.ndarray, np.ndarray], tuple[LowRank | Dense, float]]


class LayerUpdates(NamedTuple):
    """A pass over the layers.

    Attributes:
      model: with the updates.
      deltas: the updates, by layer in ascending order.
      residual: of the worst solve, relative.
    """

    model: Model
    deltas: list[LowRank | Dense]
    residual: float


def init(
    hyper: MultiLayerHyper, spec: MethodSpec, model: Model, stats: Stats | None
) -> MultiLayerState:
    """Check the hyper-parameters, sample the templates, factorise the second moments.

    Raises:
      ValueError: on layers the model lacks or that do not ascend, other values that cannot be
        meant, or missing stats.
    """
    hyper.check(model)
    whiteners = {
        layer: spec.whitener(moment_FF, layer)
        for layer, moment_FF in second_moments(hyper, model, stats).items()
    }
    regularisers = {
        layer: shard_regulariser(model.mesh, whitener_MF)
        for layer, whitener_MF in whiteners.items()
    }
    norm = anchor_norm(hyper, model, stats, hyper.layers[-1])
    return MultiLayerState(context_templates(hyper, model), regularisers, norm)


def context_templates(hyper: MultiLayerHyper, model: Model) -> tuple[tuple[str, ...], ...]:
    """Return the context templates, given or sampled."""
    return tuple(map(tuple, hyper.context_templates or sample_groups(model, hyper.seed)))


def second_moments(
    hyper: MultiLayerHyper, model: Model, stats: Stats | None
) -> dict[int, np.ndarray]:
    """Return C of each edited layer [F, F]; I where mom2_adjustment is off.

    Raises:
      ValueError: where they are needed and missing, or not of this model.
    """
    if hyper.mom2_adjustment and stats is None:
        raise ValueError(
            f"this method needs second moments of layers {list(hyper.layers)}: give stats= "
            "(jaxedit stats makes them), or set mom2_adjustment=False for C = I"
        )
    if stats is None or not hyper.mom2_adjustment:
        return dict.fromkeys(hyper.layers, np.eye(model.config.F))
    return {layer: stats.of(model, layer) for layer in hyper.layers}


def write_batch(
    hyper: MultiLayerHyper,
    spec: MethodSpec,
    model: Model,
    requests: list[Request],
    state: MultiLayerState,
    solve_layer: LayerSolver,
) -> tuple[LayerUpdates, dict[str, float]]:
    """Find the values of a batch of requests and write them, in one pass over the layers.

    Args:
      hyper: names the layers.
      spec: the method.
      model: with the edits so far.
      requests: at least one.
      state: its context templates, and NAS's norm.
      solve_layer: as in `update_layers`.

    Returns:
      The updates, and the edit in numbers.

    Raises:
      ValueError: without requests, or where one is longer than the model's positions.
    """
    if not requests:
        raise ValueError("an edit needs at least one request")
    working = allocate_deltas(model, EDITED_WEIGHT, tuple(hyper.layers))

    # The values z, after the last layer.
    groups, z_layer = state.context_templates, hyper.layers[-1]
    found = find_values(
        hyper, working, requests, sum(groups, ()), z_layer, spec.site, state.anchor_norm
    )
    z_ID = found.values.init_ID + found.values.delta_ID

    # The updates, layer by layer.
    packed = pack_prompts(working, requests, groups, hyper.key_pooling, hyper.fact_token)
    updates = update_layers(hyper, spec, working, packed, z_ID, solve_layer)
    reached_ID = compute_values(updates.model, packed, z_layer, spec.site)
    info = edit_info(found.values, updates.deltas, updates.residual, z_ID, reached_ID)
    return updates, info | found.info


def update_layers(
    hyper: MultiLayerHyper,
    spec: MethodSpec,
    model: Model,
    packed: PackedPrompts,
    z_ID: np.ndarray,
    solve_layer: LayerSolver,
) -> LayerUpdates:
    """Write the values z layer by layer, each layer's update made on the model with those before.

    Args:
      hyper: names the layers.
      spec: the method.
      model: with the edits so far and room for the layers.
      packed: the requests.
      z_ID: what their bare prompts shall hold after the last layer.
      solve_layer: (model, layer, keys [I, F], residual to write [I, D]) -> the layer's update, and
        the relative residual of its solve.
    """
    layers, z_layer = hyper.layers, hyper.layers[-1]
    deltas, residuals = [], []
    for n_written, layer in enumerate(layers):
        # K and R
        key_IF, _ = compute_keys(model, packed, layer)
        missing_ID = z_ID - compute_values(model, packed, z_layer, spec.site)
        residual_ID = missing_ID / spec.residual_divisor(len(layers) - n_written)
        if spec.site == Site.RESIDUAL and not model.config.adds_as_is:
            value_ID = compute_values(model, packed, layer, Site.MLP)
            residual_ID = change_of_values(model, layer, value_ID, residual_ID)
        check_finite("keys", key_IF, layer)
        check_finite("residual to write", residual_ID, layer)
        # D
        delta, residual = solve_layer(model, layer, key_IF, residual_ID)
        delta = spec.constrain(model, delta)
        check_finite_delta(delta)
        model = apply(model, make_edit(model, [delta]))
        deltas.append(delta)
        residuals.append(residual)
    return LayerUpdates(model, deltas, max(residuals))


def edit_memory(keys: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Name the keys of an edit's layers, by which M grows, as the edit's memory."""
    return {f"keys/{layer}": key_IF for layer, key_IF in keys.items()}


def restore(state: MultiLayerState, made: Edit) -> MultiLayerState:
    """Return the state after an edit whose keys are in its memory."""
    regularisers = dict(state.regularisers)
    for name, key_IF in made.memory.items():
        layer = int(name.removeprefix("keys/"))
        regularisers[layer] = add_past_keys(regularisers[layer], key_IF.T)
    return state._replace(regularisers=regularisers)
