"""LyapLock (2505.15702): MEMIT with a long-term bound on what it takes from preserved knowledge.

    delta W = [K R^T + a Z lambda (V0 K0^T - W K0 K0^T) + (V_p K_p^T - W K_p K_p^T)]
              (K K^T + a Z lambda K0 K0^T + K_p K_p^T)^-1
    Z <- max(Z + a (PL - alpha D), Z_max)   after each edit,   a = 1 / sqrt(alpha D)
    PL = |W K0 - V0|^2,   D = PL after the first edit,   Z = Z_max = sqrt(alpha D) at first

in the authors' orientation, with their values of 1 for the weight of new facts and 0 for b, and
with Z_max for what is Z's lower end. The first edit is MEMIT's: a Z is 1. K_p and V_p are the keys
of past facts and what the layer put out there once they were written.

V0 = W0 K0 belongs to the model before the first edit, so that with C = K0 K0^T and delta for all
that edits have changed, V0 K0^T - W K0 K0^T = -delta C and PL = tr(delta C delta^T): the three
second moments that the authors gather come down to C. And an edit is what turns delta into the
least change, under M = C and with slack a Z lambda, that writes all facts at once:

    delta + delta W = Y Kall^T (Kall Kall^T + a Z lambda C)^-1,   Kall = [K_p, K]
    Y = [V_p - W0 K_p,  R + delta K],   a Z lambda PL = <F, Y - F>,  F = (delta + delta W) Kall

So C is factorised once, whatever Z is. An edit is a whole matrix: it takes back of earlier ones
what the new bound does not allow.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import numpy as np

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import EDITED_WEIGHT, Dense, Edit, make_edit, to_dense
from jaxedit.edits.request import Request
from jaxedit.edits.weights import sum_of_edits
from jaxedit.models.model import Model
from jaxedit.solving import multi_layer
from jaxedit.solving.hyper import MultiLayerHyper
from jaxedit.solving.multi_layer import MethodSpec, MultiLayerState
from jaxedit.solving.past_keys import no_past_keys
from jaxedit.solving.ranges import AT_LEAST_ONE, POSITIVE
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.solve import least_change
from jaxedit.solving.whiteners import inverse_cholesky
from jaxedit.stats.second_moments import Stats

SPEC = MethodSpec(
    whitener=lambda moment_FF, layer: inverse_cholesky(moment_FF),
    slack=lambda n_keys: 1.0,
)


@dataclasses.dataclass(frozen=True)
class Hyper(MultiLayerHyper):
    """LyapLock's hyper-parameters, as released: `mom2_update_weight` is lambda.

    Attributes:
      alpha: how many times the first edit's loss of preserved knowledge the long-term mean may be.
    """

    v_num_grad_steps: Annotated[int, AT_LEAST_ONE] = 25
    mom2_update_weight: Annotated[float, POSITIVE] = 1000.0
    alpha: Annotated[float, POSITIVE] = 60.0


class LayerHistory(NamedTuple):
    """What a layer remembers of past edits.

    Attributes:
      key_IF: K_p.
      value_ID: V_p - W0 K_p, what edits had added at these keys once they were written.
      queue: Z; 0 before the first edit.
      budget: D; 0 before the first edit.
    """

    key_IF: np.ndarray
    value_ID: np.ndarray
    queue: float = 0.0
    budget: float = 0.0


class State(NamedTuple):
    """What an edit needs besides the model.

    Attributes:
      inner: the templates, M = C of each layer, and NAS's norm.
      start: layer -> what edits of before had changed of the weight [F, D], which is W0's part;
        empty where there were none.
      histories: layer -> past keys and values, Z and D.
    """

    inner: MultiLayerState
    start: Mapping[int, np.ndarray]
    histories: Mapping[int, LayerHistory]

    @property
    def context_templates(self) -> tuple[tuple[str, ...], ...]:
        """The context templates in groups, given or sampled."""
        return self.inner.context_templates


def make(hyper: Hyper) -> Editor:
    """Make the LyapLock editor of these hyper-parameters."""
    return Editor(
        name="lyaplock",
        hyper=hyper,
        slots=lambda model: {EDITED_WEIGHT: tuple(hyper.layers)},
        init=functools.partial(init, hyper),
        edit=functools.partial(edit, hyper),
        restore=restore,
        context_templates=lambda state: state.context_templates,
        dense=True,
    )


def init(hyper: Hyper, model: Model, stats: Stats | None) -> State:
    """Return the state before the first edit; the model is the one whose knowledge is preserved.

    Raises:
      ValueError: as `jaxedit.solving.multi_layer.init`.
    """
    inner = multi_layer.init(hyper, SPEC, model, stats)
    F, D = model.config.F, model.config.D
    nothing = LayerHistory(np.zeros((0, F), np.float32), np.zeros((0, D), np.float32))
    # Past keys are solved for anew at each edit, in float64 as all of them are.
    regularisers = {
        layer: regulariser._replace(past=no_past_keys(F, F))
        for layer, regulariser in inner.regularisers.items()
    }
    start = {}
    if model.metadata.history:
        start = {layer: sum_of_edits(model, EDITED_WEIGHT, layer) for layer in hyper.layers}
    histories = dict.fromkeys(hyper.layers, nothing)
    return State(inner._replace(regularisers=regularisers), start, histories)


def edit(
    hyper: Hyper, model: Model, requests: list[Request], state: State
) -> tuple[Edit, State, dict[str, float]]:
    """Make one edit of a batch of requests.

    Raises:
      ValueError: without requests, or where one is longer than the model's positions.
    """
    written: dict[int, LayerHistory] = {}

    def solve_layer(
        model: Model, layer: int, key_IF: np.ndarray, residual_ID: np.ndarray
    ) -> tuple[Dense, float]:
        changed_FD = sum_of_edits(model, EDITED_WEIGHT, layer) - state.start.get(layer, 0)
        past, regulariser = state.histories[layer], state.inner.regularisers[layer]
        delta_FD, written[layer], residual = write_facts(
            hyper, regulariser, past, changed_FD, key_IF, residual_ID
        )
        return Dense(EDITED_WEIGHT, layer, delta_FD), residual

    updates, info = multi_layer.write_batch(hyper, SPEC, model, requests, state.inner, solve_layer)
    memory: dict[str, np.ndarray] = {}
    for layer, facts in written.items():
        memory |= {f"keys/{layer}": facts.key_IF, f"values/{layer}": facts.value_ID}
        memory[f"queue/{layer}"] = np.array([facts.queue, facts.budget])
        info[f"preservation_layer_{layer}"] = preservation(hyper, facts)
    made = make_edit(model, updates.deltas, memory)
    return made, restore(state, made), info


def write_facts(
    hyper: Hyper,
    regulariser: KeyRegulariser,
    past: LayerHistory,
    changed_FD: np.ndarray,
    key_IF: np.ndarray,
    residual_ID: np.ndarray,
) -> tuple[np.ndarray, LayerHistory, float]:
    """Write facts into a layer.

    Args:
      hyper: lambda and alpha.
      regulariser: M = C.
      past: what the layer remembers.
      changed_FD: what edits have changed of the layer since the first one.
      key_IF: K.
      residual_ID: R.

    Returns:
      delta W [F, D]; the facts' keys and values, and Z and D after them; the relative residual of
      the solve.
    """
    # All facts, and what edits are to add at their keys.
    wanted_ID = residual_ID + key_IF.astype(np.float64) @ changed_FD
    all_key_IF = np.concatenate([past.key_IF, key_IF])
    all_wanted_ID = np.concatenate([past.value_ID, wanted_ID])

    # The change that writes them at once, and how far it goes at each.
    slack = preservation(hyper, past)
    whole, residual = least_change(
        regulariser, EDITED_WEIGHT, 0, all_key_IF.T, all_wanted_ID, slack, hyper.solve_dtype
    )
    whole_FD = to_dense(whole)
    all_value_ID = all_key_IF.astype(np.float64) @ whole_FD

    # PL, and Z and D with it.
    missed_ID = all_wanted_ID - all_value_ID
    lost = max(0.0, float(np.sum(all_value_ID * missed_ID))) / slack
    queue, budget = update_queue(hyper, past, lost)
    value_ID = all_value_ID[len(past.key_IF) :].astype(np.float32)
    return whole_FD - changed_FD, LayerHistory(key_IF, value_ID, queue, budget), residual


def restore(state: State, made: Edit) -> State:
    """Return the state after an edit: keys and values of its facts, Z and D are in its memory."""
    histories = {}
    for layer, past in state.histories.items():
        queue, budget = map(float, made.memory[f"queue/{layer}"])
        key_IF = np.concatenate([past.key_IF, made.memory[f"keys/{layer}"]])
        value_ID = np.concatenate([past.value_ID, made.memory[f"values/{layer}"]])
        histories[layer] = LayerHistory(key_IF, value_ID, queue, budget)
    return state._replace(histories=histories)


def preservation(hyper: Hyper, history: LayerHistory) -> float:
    """Compute a Z lambda, the weight of preserved knowledge in the next edit of a layer."""
    if history.budget == 0:
        return hyper.mom2_update_weight
    return hyper.mom2_update_weight * history.queue / math.sqrt(hyper.alpha * history.budget)


def update_queue(hyper: Hyper, history: LayerHistory, lost: float) -> tuple[float, float]:
    """Compute Z and D after an edit that leaves PL = `lost` of a layer."""
    budget = history.budget or lost
    if budget == 0:  # an edit that changes nothing is not the first one
        return 0.0, 0.0
    least = math.sqrt(hyper.alpha * budget)
    queue = history.queue or least
    return max(queue + (lost - hyper.alpha * budget) / least, least), budget
