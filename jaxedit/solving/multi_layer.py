"""Edits of many facts spread over several layers: what MEMIT, EMMET, AlphaEdit and their sequential
relatives share.

The values z are found once, for the residual stream after the last edited layer (2210.07229, eq.
16). Then for each layer l_1 < ... < l_L in turn, with the layers before already written,

    K     the keys of the requests at this layer, pooled over their context templates
    R     (z - what the bare prompts now hold after l_L) / share(layers still to write, this one included)
    D     the solver's update for keys K and values R under this layer's M and g                     (jaxedit.solving.solve)

The methods differ in M, g, the share, whether z is the residual stream or the MLP's output, and
what they keep of K for later edits."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxedit.edits.edit import Dense, Edit, LowRank, apply, make_edit, to_dense
from jaxedit.edits.request import Request
from jaxedit.models.model import Model, allocate_deltas
from jaxedit.solving.hyper import ValueHyper
from jaxedit.solving.keys import POOLINGS, PackedPrompts, compute_keys, compute_values, pack_prompts
from jaxedit.solving.solve import KeyRegulariser, add_past_keys, least_change, shard_regulariser
from jaxedit.solving.templates import check_template, sample_groups
from jaxedit.solving.value import OptimisedValues
from jaxedit.solving.value_cache import cached_values
from jaxedit.stats.second_moments import Stats

WEIGHT = "mlp/w_down"
PARTS = {
    "residual": (True, False),
    "mlp": (False, True),
}  # z -> what `find` is told: residual, attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLayerHyper(ValueHyper):
    """Hyper-parameters of the family under their published names; each method adds its own.

    Attributes:
      layers: the layers to edit; the values are those after the last of them. empty:
        those published for the model.
      context_templates: groups of texts with one `{}` each; None samples [["{}"], five of ten
        tokens] from `seed`.
      key_pooling: "group_means" as released (the bare prompt counts a half) or "mean".
      mom2_adjustment: False replaces the second moments by the identity.
      solve_dtype: of the solve that is as wide as the batch, "float64" as released or "float32".
    """

    layers: tuple[int, ...] = ()
    clamp_norm_factor: float = 0.75
    context_templates: tuple[tuple[str, ...], ...] | None = None
    key_pooling: str = "group_means"
    mom2_adjustment: bool = True
    solve_dtype: str = "float64"


class MethodSpec(NamedTuple):
    """What makes a method of the family.

    Attributes:
      whitener: (second moment [F, F], layer) -> whitener [M, F] of the layer's M without history.
      slack: (number of requests) -> the price of a miss in the solver.
      history: whether M grows by the keys of past edits: "none", as they were "before" the write,
        or "after" it.
      residual_divisor: (layers still to write, this one included) -> what the residual is divided
        by at this layer.
      site: what z is, after the last edited layer: the "residual" stream, or the "mlp"'s output
        (2308.08742), optimised along with the attention's.
    """

    whitener: Callable[[np.ndarray, int], np.ndarray]
    slack: Callable[[int], float]
    history: str = "none"
    residual_divisor: Callable[[int], float] = float
    site: str = "residual"


class MultiLayerState(NamedTuple):
    """The templates, and M of each layer with what past edits left in it."""

    context_templates: tuple[tuple[str, ...], ...]
    metrics: Mapping[int, KeyRegulariser]


def init(
    hyper: MultiLayerHyper, spec: MethodSpec, model: Model, stats: Stats | None
) -> MultiLayerState:
    """Checks the hyper-parameters against the model, samples the templates, factorises the second
    moments.

    Raises:
      ValueError: on layers the model lacks or that do not ascend, other values that cannot be
        meant, or missing stats.
    """
    check_hyper(hyper, model)
    whiteners = {
        layer: spec.whitener(moment_FF, layer)
        for layer, moment_FF in second_moments(hyper, model, stats).items()
    }
    metrics = {
        layer: shard_regulariser(model.mesh, whitener_MF)
        for layer, whitener_MF in whiteners.items()
    }
    return MultiLayerState(context_templates(hyper, model), metrics)


def context_templates(hyper: MultiLayerHyper, model: Model) -> tuple[tuple[str, ...], ...]:
    """The context templates, given or sampled."""
    return tuple(map(tuple, hyper.context_templates or sample_groups(model, hyper.seed)))


def second_moments(
    hyper: MultiLayerHyper, model: Model, stats: Stats | None
) -> dict[int, np.ndarray]:
    """C of each edited layer [F, F].

    Raises:
      ValueError: where they are needed and missing, or not of this model.
    """
    if hyper.mom2_adjustment and stats is None:
        raise ValueError(
            f"this method needs second moments of layers {list(hyper.layers)}: give stats= (jaxedit stats makes them), or "
            "set mom2_adjustment=False for C = I"
        )
    if stats is None or not hyper.mom2_adjustment:
        return dict.fromkeys(hyper.layers, np.eye(model.config.F))
    return {layer: stats.of(model, layer) for layer in hyper.layers}


def check_hyper(hyper: MultiLayerHyper, model: Model) -> None:
    """Raises a ValueError on hyper-parameters that cannot be meant for this model."""
    hyper.check(model)
    layers, last = list(hyper.layers), model.config.L - 1
    if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= last:
        raise ValueError(
            f"layers={layers}: expected ascending layers from 0 to {last - 1} of {model.metadata.source}"
        )
    for name, given, allowed in (
        ("key_pooling", hyper.key_pooling, POOLINGS),
        ("solve_dtype", hyper.solve_dtype, ("float64", "float32")),
    ):
        if given not in allowed:
            raise ValueError(f"{name}={given!r}: expected {' or '.join(map(repr, allowed))}")
    if hyper.context_templates is not None:
        if isinstance(hyper.context_templates, str) or any(
            isinstance(group, str) for group in hyper.context_templates
        ):
            raise ValueError(
                'context_templates must be a list of groups of texts, e.g. [["{}"], ["I think that {}"]]'
            )
        for template in (template for group in hyper.context_templates for template in group):
            check_template(template)


def edit(
    hyper: MultiLayerHyper,
    spec: MethodSpec,
    model: Model,
    requests: list[Request],
    state: MultiLayerState,
) -> tuple[Edit, MultiLayerState, dict[str, float]]:
    """One edit of a batch of requests; the state keeps its keys where the method has a history."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    groups = state.context_templates
    working = allocate_deltas(model, WEIGHT, tuple(hyper.layers))
    z_layer = hyper.layers[-1]
    found = cached_values(hyper, working, requests, sum(groups, ()), z_layer, *PARTS[spec.site])
    z_ND = found.init_ND + found.delta_ND
    questions = pack_prompts(working, requests, groups, hyper.key_pooling, hyper.fact_token)
    written = update_layers(
        hyper, spec, working, questions, z_ND, lambda layer, key_NF: state.metrics[layer]
    )
    made = make_edit(model, written.deltas, edit_memory(hyper, spec, written, questions))
    held_ND = compute_values(written.model, questions, z_layer, spec.site)
    return (
        made,
        restore(state, made),
        edit_info(found, written.deltas, written.residual, z_ND, held_ND),
    )


class LayerUpdates(NamedTuple):
    """A pass over the layers: the model with it, its deltas, the keys by layer before each write,
    the worst solve.
    """

    model: Model
    deltas: list[LowRank | Dense]
    keys: dict[int, np.ndarray]
    residual: float


def update_layers(
    hyper: MultiLayerHyper,
    spec: MethodSpec,
    model: Model,
    questions: PackedPrompts,
    z_ND: np.ndarray,
    metric_of: Callable[[int, np.ndarray], KeyRegulariser],
) -> LayerUpdates:
    """Writes the values z layer by layer, each layer's update made on the model with those before.

    Args:
      hyper: names the layers.
      spec: the method.
      model: with the edits so far and room for the layers.
      questions: of the requests.
      z_ND: what their bare prompts shall hold after the last layer.
      metric_of: (layer, keys [N, F]) -> the layer's M.
    """
    z_layer = hyper.layers[-1]
    deltas, found, misses = [], {}, []
    for i, layer in enumerate(hyper.layers):
        key_NF, _ = compute_keys(model, questions, layer)
        value_ND = (
            z_ND - compute_values(model, questions, z_layer, spec.site)
        ) / spec.residual_divisor(len(hyper.layers) - i)
        metric, slack = metric_of(layer, key_NF), spec.slack(len(z_ND))
        delta, residual = least_change(
            metric, WEIGHT, layer, key_NF.T, value_ND, slack, hyper.solve_dtype
        )
        model = apply(model, make_edit(model, [delta]))
        deltas.append(delta)
        misses.append(residual)
        found[layer] = key_NF
    return LayerUpdates(model, deltas, found, max(misses))


def edit_memory(
    hyper: MultiLayerHyper, spec: MethodSpec, written: LayerUpdates, questions: PackedPrompts
) -> dict[str, np.ndarray]:
    """The memory of an edit: the keys by which M grows."""
    if spec.history == "none":
        return {}
    found = written.keys
    if spec.history == "after":
        found = {layer: compute_keys(written.model, questions, layer)[0] for layer in hyper.layers}
    return {f"keys/{layer}": key_NF for layer, key_NF in found.items()}


def restore(state: MultiLayerState, made: Edit) -> MultiLayerState:
    """The state after an edit whose keys are in its memory."""
    metrics = dict(state.metrics)
    for name, key_NF in made.memory.items():
        layer = int(name.removeprefix("keys/"))
        metrics[layer] = add_past_keys(metrics[layer], key_NF.T)
    return state._replace(metrics=metrics)


def edit_info(found: OptimisedValues, deltas, miss: float, z_ND, held_ND) -> dict[str, float]:
    """Numbers of an edit, means over its requests; `z_miss` is |z - what the model now holds| /
    |delta|.
    """
    norms = {
        f"norm_layer_{delta.layer}": float(np.linalg.norm(to_dense(delta))) for delta in deltas
    }
    delta_norm_N = np.linalg.norm(found.delta_ND, axis=1)
    z_miss_N = np.linalg.norm(z_ND - held_ND, axis=1) / np.maximum(
        delta_norm_N, np.finfo(np.float32).tiny
    )
    return {
        "loss": float(np.mean(found.nll_N + found.kl_N + found.decay_N)),
        "loss_nll_nats": float(np.mean(found.nll_N)),
        "loss_kl": float(np.mean(found.kl_N)),
        "loss_weight_decay": float(np.mean(found.decay_N)),
        "probability": float(np.mean(np.exp(-found.nll_N))),
        "n_steps": float(np.mean(found.n_steps_N)),
        "delta_norm": float(np.mean(delta_norm_N)),
        "z_miss": float(np.mean(z_miss_N)),
        "solve_residual": miss,
        **norms,
    }
