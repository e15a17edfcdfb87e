"""Edits of many facts spread over several layers: what MEMIT, EMMET, AlphaEdit and their sequential relatives share.

The values z are found once, for the residual stream after the last edited layer (2210.07229, eq. 16). Then for each layer
l_1 < ... < l_L in turn, with the layers before already written,

    K     the keys of the requests at this layer, pooled over their context templates
    R     (z - what the bare prompts now hold after l_L) / share(layers still to write, this one included)
    D     the solver's update for keys K and values R under this layer's M and g                     (jaxedit.solving.solve)

The methods differ in M, g, the share, whether z is the residual stream or the MLP's output, and what they keep of K for
later edits.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxedit.edits.edit import Dense, Edit, LowRank, apply, make_edit, matrix
from jaxedit.edits.request import Request
from jaxedit.models.model import Model, with_slots
from jaxedit.solving.hyper import ValueHyper
from jaxedit.solving.keys import POOLINGS, Questions, ask, keys, values
from jaxedit.solving.solve import Metric, metric_on, remember, update
from jaxedit.solving.templates import check_template, sample_groups
from jaxedit.solving.value import Targets
from jaxedit.solving.value_cache import find
from jaxedit.stats.second_moments import Stats

WEIGHT = "mlp/w_down"
PARTS = {"residual": (True, False), "mlp": (False, True)}  # z -> what `find` is told: residual, attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpreadHyper(ValueHyper):
    """Hyper-parameters of the family under their published names; each method adds its own.

    Attributes:
      layers: the layers to edit; the values are those after the last of them.
      context_templates: groups of texts with one `{}` each; None samples [["{}"], five of ten tokens] from `seed`.
      key_pooling: "group_means" as released (the bare prompt counts a half) or "mean".
      mom2_adjustment: False replaces the second moments by the identity.
      solve_dtype: of the solve that is as wide as the batch, "float64" as released or "float32".
    """

    layers: tuple[int, ...]
    clamp_norm_factor: float = 0.75
    context_templates: tuple[tuple[str, ...], ...] | None = None
    key_pooling: str = "group_means"
    mom2_adjustment: bool = True
    solve_dtype: str = "float64"


class Recipe(NamedTuple):
    """What makes a method of the family.

    Attributes:
      whiten: (second moment [F, F], layer) -> whitener [M, F] of the layer's M without history.
      g: (number of requests) -> the price of a miss in the solver.
      history: whether M grows by the keys of past edits: "none", as they were "before" the write, or "after" it.
      share: (layers still to write, this one included) -> what the residual is divided by at this layer.
      part: what z is, after the last edited layer: the "residual" stream, or the "mlp"'s output (2308.08742), optimised
        along with the attention's.
    """

    whiten: Callable[[np.ndarray, int], np.ndarray]
    g: Callable[[int], float]
    history: str = "none"
    share: Callable[[int], float] = float
    part: str = "residual"


class SpreadState(NamedTuple):
    """The templates, and M of each layer with what past edits left in it."""

    context_templates: tuple[tuple[str, ...], ...]
    metrics: Mapping[int, Metric]


def init(hyper: SpreadHyper, recipe: Recipe, model: Model, stats: Stats | None) -> SpreadState:
    """Checks the hyper-parameters against the model, samples the templates, factorises the second moments.

    Raises:
      ValueError: on layers the model lacks or that do not ascend, other values that cannot be meant, or missing stats.
    """
    check(hyper, model)
    whiteners = {layer: recipe.whiten(moment_FF, layer) for layer, moment_FF in moments(hyper, model, stats).items()}
    metrics = {layer: metric_on(model.mesh, whitener_MF) for layer, whitener_MF in whiteners.items()}
    return SpreadState(templates(hyper, model), metrics)


def templates(hyper: SpreadHyper, model: Model) -> tuple[tuple[str, ...], ...]:
    """The context templates, given or sampled."""
    return tuple(map(tuple, hyper.context_templates or sample_groups(model, hyper.seed)))


def moments(hyper: SpreadHyper, model: Model, stats: Stats | None) -> dict[int, np.ndarray]:
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


def check(hyper: SpreadHyper, model: Model) -> None:
    """Raises a ValueError on hyper-parameters that cannot be meant for this model."""
    hyper.check(model)
    layers, last = list(hyper.layers), model.config.L - 1
    if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= last:
        raise ValueError(f"layers={layers}: expected ascending layers from 0 to {last - 1} of {model.companion.source}")
    for name, given, allowed in (
        ("key_pooling", hyper.key_pooling, POOLINGS),
        ("solve_dtype", hyper.solve_dtype, ("float64", "float32")),
    ):
        if given not in allowed:
            raise ValueError(f"{name}={given!r}: expected {' or '.join(map(repr, allowed))}")
    if hyper.context_templates is not None:
        if isinstance(hyper.context_templates, str) or any(isinstance(group, str) for group in hyper.context_templates):
            raise ValueError('context_templates must be a list of groups of texts, e.g. [["{}"], ["I think that {}"]]')
        for template in (template for group in hyper.context_templates for template in group):
            check_template(template)


def edit(
    hyper: SpreadHyper, recipe: Recipe, model: Model, requests: list[Request], state: SpreadState
) -> tuple[Edit, SpreadState, dict[str, float]]:
    """One edit of a batch of requests; the state keeps its keys where the method has a history."""
    if not requests:
        raise ValueError("an edit needs at least one request")
    groups = state.context_templates
    working = with_slots(model, WEIGHT, tuple(hyper.layers))
    z_layer = hyper.layers[-1]
    found = find(hyper, working, requests, sum(groups, ()), z_layer, *PARTS[recipe.part])
    z_ND = found.init_ND + found.delta_ND
    questions = ask(working, requests, groups, hyper.key_pooling, hyper.fact_token)
    written = write(hyper, recipe, working, questions, z_ND, lambda layer, key_NF: state.metrics[layer])
    made = make_edit(model, written.deltas, remembered(hyper, recipe, written, questions))
    held_ND = values(written.model, questions, z_layer, recipe.part)
    return made, absorb(state, made), info(found, written.deltas, written.residual, z_ND, held_ND)


class Written(NamedTuple):
    """A pass over the layers: the model with it, its deltas, the keys by layer before each write, the worst solve."""

    model: Model
    deltas: list[LowRank | Dense]
    keys: dict[int, np.ndarray]
    residual: float


def write(
    hyper: SpreadHyper,
    recipe: Recipe,
    model: Model,
    questions: Questions,
    z_ND: np.ndarray,
    metric_of: Callable[[int, np.ndarray], Metric],
) -> Written:
    """Writes the values z layer by layer, each layer's update made on the model with those before.

    Args:
      hyper: names the layers.
      recipe: the method.
      model: with the edits so far and room for the layers.
      questions: of the requests.
      z_ND: what their bare prompts shall hold after the last layer.
      metric_of: (layer, keys [N, F]) -> the layer's M.
    """
    z_layer = hyper.layers[-1]
    deltas, found, misses = [], {}, []
    for i, layer in enumerate(hyper.layers):
        key_NF, _ = keys(model, questions, layer)
        value_ND = (z_ND - values(model, questions, z_layer, recipe.part)) / recipe.share(len(hyper.layers) - i)
        metric, g = metric_of(layer, key_NF), recipe.g(len(z_ND))
        delta, residual = update(metric, WEIGHT, layer, key_NF.T, value_ND, g, hyper.solve_dtype)
        model = apply(model, make_edit(model, [delta]))
        deltas.append(delta)
        misses.append(residual)
        found[layer] = key_NF
    return Written(model, deltas, found, max(misses))


def remembered(hyper: SpreadHyper, recipe: Recipe, written: Written, questions: Questions) -> dict[str, np.ndarray]:
    """The memory of an edit: the keys by which M grows."""
    if recipe.history == "none":
        return {}
    found = written.keys
    if recipe.history == "after":
        found = {layer: keys(written.model, questions, layer)[0] for layer in hyper.layers}
    return {f"keys/{layer}": key_NF for layer, key_NF in found.items()}


def absorb(state: SpreadState, made: Edit) -> SpreadState:
    """The state after an edit whose keys are in its memory."""
    metrics = dict(state.metrics)
    for name, key_NF in made.memory.items():
        layer = int(name.removeprefix("keys/"))
        metrics[layer] = remember(metrics[layer], key_NF.T)
    return state._replace(metrics=metrics)


def info(found: Targets, deltas, miss: float, z_ND, held_ND) -> dict[str, float]:
    """Numbers of an edit, means over its requests; `z_miss` is |z - what the model now holds| / |delta|."""
    norms = {f"norm_layer_{delta.layer}": float(np.linalg.norm(matrix(delta))) for delta in deltas}
    delta_norm_N = np.linalg.norm(found.delta_ND, axis=1)
    z_miss_N = np.linalg.norm(z_ND - held_ND, axis=1) / np.maximum(delta_norm_N, np.finfo(np.float32).tiny)
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
