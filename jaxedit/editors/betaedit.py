"""BetaEdit (Liu et al. 2026, arXiv 2605.09285): AlphaEdit with a null space that is renewed.

    delta W = U (U^T (lambda1 C + S + K K^T) U + lambda2 I)^-1 U^T K R^T
    S = sum of K_p K_p^T over the edits before

It counts what the null space lets through. U spans the eigenvectors of C whose eigenvalues are
below nullspace_threshold, and, once tau more facts are written, those of
(S / facts so far + lambda1 C) / (lambda1 + 1).

The released code ends its run at an update of a layer whose Frobenius norm is over 20 sqrt(facts in
the batch), and does not write it. Here such an edit raises, so that nothing of it is written and a
study can go on.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import EDITED_WEIGHT, Edit, delta_norm
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.solving import closed_form, multi_layer
from jaxedit.solving.hyper import MultiLayerHyper
from jaxedit.solving.key_history import KeyHistory, append, gram
from jaxedit.solving.multi_layer import MethodSpec, MultiLayerState
from jaxedit.solving.regulariser import shard_folded
from jaxedit.solving.whiteners import inverse_cholesky, null_space
from jaxedit.stats.second_moments import Stats


@dataclasses.dataclass(frozen=True)
class Hyper(MultiLayerHyper):
    """BetaEdit's hyper-parameters, as released.

    Attributes:
      lambda1: the weight of C.
      lambda2: the ridge.
      tau: facts between renewals of the null space.
      nullspace_threshold: a number, or one for each layer.
      norm_limit: the most that a layer's update may measure, times sqrt(facts in the batch).
    """

    lambda1: float = 3000.0
    lambda2: float = 10.0
    tau: int = 1000
    nullspace_threshold: float | Mapping[int, float] = 2e-2
    norm_limit: float = 20.0


class State(NamedTuple):
    """What an edit needs besides the model.

    Attributes:
      inner: the templates, and M of each layer under the present U.
      histories: layer -> C and S.
      mesh: the devices.
      n_facts: written so far.
      n_at_renewal: written when U was last made.
    """

    inner: MultiLayerState
    histories: Mapping[int, KeyHistory]
    mesh: Mesh
    n_facts: int = 0
    n_at_renewal: int = 0

    @property
    def context_templates(self) -> tuple[tuple[str, ...], ...]:
        """The context templates in groups, given or sampled."""
        return self.inner.context_templates


def make(hyper: Hyper) -> Editor:
    """Make the BetaEdit editor of these hyper-parameters."""
    spec = MethodSpec(
        whitener=lambda moment_FF, layer: whiten(hyper, layer, moment_FF),
        slack=lambda n_keys: 1.0,
        history=True,
    )
    return Editor(
        name="betaedit",
        hyper=hyper,
        slots=lambda model: {EDITED_WEIGHT: tuple(hyper.layers)},
        init=functools.partial(init, hyper, spec),
        edit=functools.partial(edit, hyper, spec),
        restore=functools.partial(restore, hyper),
        context_templates=lambda state: state.context_templates,
    )


def init(hyper: Hyper, spec: MethodSpec, model: Model, stats: Stats | None) -> State:
    """Return the state before the first edit; C stays on the host for the renewals.

    Raises:
      ValueError: as `jaxedit.solving.multi_layer.init`, and on values of its own hyper-parameters
        that cannot be meant.
    """
    if hyper.tau < 1 or hyper.lambda1 < 0 or min(hyper.lambda2, hyper.norm_limit) <= 0:
        raise ValueError(
            f"tau={hyper.tau}, lambda1={hyper.lambda1}, lambda2={hyper.lambda2}, "
            f"norm_limit={hyper.norm_limit}: expected tau >= 1, lambda1 >= 0, and the others "
            "positive"
        )
    inner = multi_layer.init(hyper, spec, model, stats)
    moments = multi_layer.second_moments(hyper, model, stats)
    histories = {layer: KeyHistory(moment_FF) for layer, moment_FF in moments.items()}
    return State(inner, histories, model.mesh)


def edit(
    hyper: Hyper, spec: MethodSpec, model: Model, requests: list[Request], state: State
) -> tuple[Edit, State, dict[str, float]]:
    """Make one edit of a batch of requests.

    Raises:
      ValueError: where a layer's update is over the norm limit.
    """
    made, inner, info = closed_form.edit(hyper, spec, model, requests, state.inner)
    norms = {
        delta.layer: delta_norm(delta) / float(np.sqrt(len(requests))) for delta in made.deltas
    }
    worst = max(norms, key=norms.__getitem__)
    if not norms[worst] <= hyper.norm_limit:
        raise ValueError(
            f"the update of layer {worst} has norm / sqrt({len(requests)} facts) = "
            f"{norms[worst]:.4g}, over norm_limit={hyper.norm_limit:g}: the model is about to "
            "break, so the edit is not made"
        )
    return made, _renew(hyper, state, inner, made), info


def restore(hyper: Hyper, state: State, made: Edit) -> State:
    """Return the state after an edit whose keys are in its memory."""
    return _renew(hyper, state, multi_layer.restore(state.inner, made), made)


def whiten(hyper: Hyper, layer: int, moment_FF: np.ndarray) -> np.ndarray:
    """Compute the whitener L^-1 U^T [M, F] before the first edit: S = 0, and U is of C alone."""
    u_FM = null_space(moment_FF, hyper.nullspace_threshold, layer)
    m_FF = hyper.lambda1 * np.asarray(moment_FF, np.float64)
    whitener_MF = _inverse_cholesky_within(hyper, u_FM, m_FF) @ u_FM.T
    return whitener_MF.astype(np.float32)


def _inverse_cholesky_within(hyper: Hyper, u_FM: np.ndarray, m_FF: np.ndarray) -> np.ndarray:
    """Compute L^-1 in float64, with U^T m U + lambda2 I = L L^T."""
    u_FM = u_FM.astype(np.float64)
    return inverse_cholesky(u_FM.T @ m_FF @ u_FM, ridge=hyper.lambda2, dtype=np.float64)


def _renew(hyper: Hyper, state: State, inner: MultiLayerState, made: Edit) -> State:
    """Return the state with an edit's keys in S, and a new U where tau facts are written."""
    # The state's layers: an editor that takes the published ones has none in `hyper`.
    keys = {layer: made.memory[f"keys/{layer}"] for layer in state.histories}
    histories = {layer: append(history, keys[layer]) for layer, history in state.histories.items()}
    n_facts = state.n_facts + len(next(iter(keys.values())))
    if n_facts - state.n_at_renewal < hyper.tau:
        return State(inner, histories, state.mesh, n_facts, state.n_at_renewal)

    # The null space of what is protected by now, and M in it; S is in M, so that its factor stays
    # in float64, on the basis as the devices hold it.
    regularisers = {}
    for layer, history in histories.items():
        s_FF, c_FF = gram(history), hyper.lambda1 * np.asarray(history.moment_FF, np.float64)
        protected_FF = (s_FF / n_facts + c_FF) / (hyper.lambda1 + 1)
        u_FM = null_space(protected_FF, hyper.nullspace_threshold, layer).astype(np.float32)
        fold_MM = _inverse_cholesky_within(hyper, u_FM, s_FF + c_FF)
        regularisers[layer] = shard_folded(state.mesh, np.ascontiguousarray(u_FM.T), fold_MM)
    inner = inner._replace(regularisers=regularisers)
    return State(inner, histories, state.mesh, n_facts, n_facts)
