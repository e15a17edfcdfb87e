"""BetaEdit (Liu et al. 2026, arXiv 2605.09285): AlphaEdit that counts what its null space lets
through, and renews it.

    delta W = U (U^T (lambda1 C + S + K K^T) U + lambda2 I)^-1 U^T K R^T,     S = sum of K_p K_p^T over the edits before

U spans the eigenvectors of C whose eigenvalues are below nullspace_threshold, and, once tau more
facts are written, those of (S / facts so far + lambda1 C) / (lambda1 + 1). The keys K_p are those
before their own write.

The released code ends its run at an update of a layer whose Frobenius norm is over 20 sqrt(facts in
the batch), and does not write it. Here such an edit raises, so that nothing of it is written and a
study can go on."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.editors._base import Editor
from jaxedit.edits.edit import Edit, to_dense
from jaxedit.edits.request import Request
from jaxedit.models.model import Model
from jaxedit.solving import multi_layer
from jaxedit.solving.key_history import KeyHistory, append, gram, null_space
from jaxedit.solving.solve import inverse_cholesky, shard_regulariser
from jaxedit.stats.second_moments import Stats


@dataclasses.dataclass(frozen=True)
class Hyper(multi_layer.MultiLayerHyper):
    """BetaEdit's hyper-parameters, as released.

    Attributes:
      lambda1: the weight of C.
      lambda2: the ridge.
      tau: facts between renewals of the null space.
      nullspace_threshold: a number, or one for each layer.
      norm_limit: what a layer's update may measure, times sqrt(facts in the batch).
    """

    lambda1: float = 3000.0
    lambda2: float = 10.0
    tau: int = 1000
    nullspace_threshold: float | Mapping[int, float] = 2e-2
    norm_limit: float = 20.0


class State(NamedTuple):
    """The family's state, C and S of each layer, the devices, the facts so far and those when U was
    last made.
    """

    spread: multi_layer.MultiLayerState
    pasts: Mapping[int, KeyHistory]
    mesh: Mesh
    n_facts: int = 0
    n_at_renewal: int = 0

    @property
    def context_templates(self) -> tuple[tuple[str, ...], ...]:
        """Where keys and targets are read."""
        return self.spread.context_templates


def make(hyper: Hyper) -> Editor:
    """BetaEdit with these hyper-parameters."""
    spec = multi_layer.MethodSpec(
        whitener=lambda moment_FF, layer: whiten(
            hyper, layer, moment_FF, hyper.lambda1 * np.asarray(moment_FF, np.float64)
        ),
        slack=lambda n: 1.0,
        history="before",
    )
    return Editor(
        name="betaedit",
        hyper=hyper,
        slots=lambda model: {multi_layer.WEIGHT: tuple(hyper.layers)},
        init=functools.partial(init, hyper, spec),
        edit=functools.partial(edit, hyper, spec),
        restore=functools.partial(restore, hyper),
        context_templates=lambda state: state.context_templates,
    )


def init(hyper: Hyper, spec: multi_layer.MethodSpec, model: Model, stats: Stats | None) -> State:
    """As `jaxedit.solving.multi_layer.init`; C stays on the host for the renewals.

    Raises:
      ValueError: also on values of its own hyper-parameters that cannot be meant.
    """
    if hyper.tau < 1 or hyper.lambda1 < 0 or min(hyper.lambda2, hyper.norm_limit) <= 0:
        raise ValueError(
            f"tau={hyper.tau}, lambda1={hyper.lambda1}, lambda2={hyper.lambda2}, norm_limit={hyper.norm_limit}: expected "
            "tau >= 1, lambda1 >= 0, and the others positive"
        )
    made = multi_layer.init(hyper, spec, model, stats)
    pasts = {
        layer: KeyHistory(moment_FF)
        for layer, moment_FF in multi_layer.second_moments(hyper, model, stats).items()
    }
    return State(made, pasts, model.mesh)


def edit(
    hyper: Hyper, spec: multi_layer.MethodSpec, model: Model, requests: list[Request], state: State
) -> tuple[Edit, State, dict[str, float]]:
    """One edit of a batch of requests.

    Raises:
      ValueError: where a layer's update is over the norm limit.
    """
    made, remembered, info = multi_layer.edit(hyper, spec, model, requests, state.spread)
    norms = {
        delta.layer: float(np.linalg.norm(to_dense(delta))) / np.sqrt(len(requests))
        for delta in made.deltas
    }
    worst = max(norms, key=norms.__getitem__)
    if not norms[worst] <= hyper.norm_limit:
        raise ValueError(
            f"the update of layer {worst} has norm / sqrt({len(requests)} facts) = {norms[worst]:.4g}, over "
            f"norm_limit={hyper.norm_limit:g}: the model is about to break, so the edit is not made"
        )
    return made, _renewed(hyper, state, remembered, made), info


def restore(hyper: Hyper, state: State, made: Edit) -> State:
    """The state after an edit whose keys are in its memory."""
    return _renewed(hyper, state, multi_layer.restore(state.spread, made), made)


def whiten(hyper: Hyper, layer: int, protected_FF: np.ndarray, m_FF: np.ndarray) -> np.ndarray:
    """(L^-1 U^T) [M, F] with U of what is protected, and U^T m U + lambda2 I = L L^T."""
    u_FM = null_space(protected_FF, hyper.nullspace_threshold, layer)
    return inverse_cholesky(u_FM.T @ m_FF @ u_FM, ridge=hyper.lambda2) @ u_FM.T.astype(np.float32)


def _renewed(
    hyper: Hyper, state: State, remembered: multi_layer.MultiLayerState, made: Edit
) -> State:
    """The state with an edit's keys in S, and U made anew where that is due."""
    keys = {layer: made.memory[f"keys/{layer}"] for layer in hyper.layers}
    pasts = {layer: append(past, keys[layer]) for layer, past in state.pasts.items()}
    n_facts = state.n_facts + len(keys[hyper.layers[0]])
    if n_facts - state.n_at_renewal < hyper.tau:
        return State(remembered, pasts, state.mesh, n_facts, state.n_at_renewal)
    metrics = {}
    for layer, past in pasts.items():
        s_FF, c_FF = gram(past), hyper.lambda1 * np.asarray(past.moment_FF, np.float64)
        renewed_MF = whiten(
            hyper, layer, (s_FF / n_facts + c_FF) / (hyper.lambda1 + 1), s_FF + c_FF
        )
        metrics[layer] = shard_regulariser(state.mesh, renewed_MF)
    return State(remembered._replace(metrics=metrics), pasts, state.mesh, n_facts, n_facts)
