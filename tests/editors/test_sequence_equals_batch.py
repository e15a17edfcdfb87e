"""With fixed keys and values, which methods write in a sequence what they would write at once.

Those whose M grows by the past keys alone do: each edit is a step of recursive least squares. What
is renewed, chosen or restrained edit by edit ends elsewhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from reference.distance import relative

import jaxedit
from jaxedit.editors import betaedit, lyaplock, nse
from jaxedit.edits.edit import EDITED_WEIGHT, Edit, make_edit
from jaxedit.solving.key_history import KeyHistory
from jaxedit.solving.multi_layer import MultiLayerState
from jaxedit.solving.norm_anchor import SKIP_LIMITS
from jaxedit.solving.past_keys import no_past_keys
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.site import Site
from jaxedit.solving.solve import add_past_keys, least_change
from jaxedit.solving.update_constraints import UpdateConstraints, apply_to
from jaxedit.solving.whiteners import inverse_cholesky, null_space

LAYER, N_EDITS, N_KEYS = 2, 4, 3
LAMBDA, RIDGE, L2 = 0.3, 0.2, 0.5
Constrain = Callable[[jaxedit.Model, Edit], Edit]


class Facts(NamedTuple):
    """A layer, C, keys and values of edits; the second one writes the first one's keys."""

    model: jaxedit.Model
    moment_FF: np.ndarray
    key_EFI: np.ndarray
    value_EID: np.ndarray


@pytest.fixture(scope="module")
def facts(golden) -> Facts:
    rng, model = np.random.default_rng(0), golden("llama")
    F, D = model.config.F, model.config.D
    root_FF = rng.standard_normal((F, F)) / np.sqrt(F)
    key_EFI = (root_FF @ rng.standard_normal((N_EDITS, F, N_KEYS))).astype(np.float32)
    key_EFI[1] = key_EFI[0]
    return Facts(model, root_FF @ root_FF.T, key_EFI, rng.standard_normal((N_EDITS, N_KEYS, D)))


def keep(model: jaxedit.Model, edit: Edit) -> Edit:
    """Leave an edit as it is."""
    return edit


def weight_of(model) -> np.ndarray:
    base_FD = np.float64(model.base[EDITED_WEIGHT][LAYER])
    if EDITED_WEIGHT not in model.overlay.delta:
        return base_FD
    return base_FD + np.float64(model.overlay.delta[EDITED_WEIGHT][0])


def change(facts: Facts, regulariser_of, batches: list[list[int]], constrain: Constrain = keep):
    """Write batches of edits one after the other; return all that they changed.

    Args:
      facts: keys and values; what is missing of a value is measured on the weight of the moment.
      regulariser_of: (keys [I, F] written so far, a batch each, keys of this batch [I, F]) -> M.
      batches: which edits are written together.
      constrain: as `UpdateConstraints` do.
    """
    model, past = facts.model, []
    for batch in batches:
        key_FI = np.concatenate(facts.key_EFI[batch], axis=1)
        value_ID = np.concatenate(facts.value_EID[batch])
        residual_ID = value_ID - np.float64(key_FI).T @ weight_of(model)
        delta, _ = least_change(
            regulariser_of(past, key_FI.T),
            EDITED_WEIGHT,
            LAYER,
            key_FI,
            residual_ID,
            1.0,
            "float64",
        )
        model = jaxedit.apply(model, constrain(model, make_edit(model, [delta])))
        past.append(key_FI.T)
    return weight_of(model) - weight_of(facts.model)


ONE_BY_ONE, AT_ONCE = [[e] for e in range(N_EDITS)], [list(range(N_EDITS))]


def growing(whitener_MF: np.ndarray):
    """M that grows by the past keys."""

    def regulariser_of(past, key_IF) -> KeyRegulariser:
        M, F = whitener_MF.shape
        regulariser = KeyRegulariser(whitener_MF, no_past_keys(F, M))
        for key_IF in past:
            regulariser = add_past_keys(regulariser, key_IF.T)
        return regulariser

    return regulariser_of


def memit_sequential(facts: Facts):
    return growing(inverse_cholesky(facts.moment_FF, LAMBDA))


def encore(facts: Facts):
    return growing(inverse_cholesky(facts.moment_FF, LAMBDA, RIDGE))


def alphaedit(facts: Facts):
    threshold = float(np.median(np.linalg.eigvalsh(facts.moment_FF)))
    u_FM = null_space(facts.moment_FF, threshold, LAYER)
    return growing((u_FM.T / np.sqrt(L2)).astype(np.float32))


def one_time(facts: Facts, m_FF: np.ndarray, p_FF: np.ndarray) -> np.ndarray:
    """Evaluate the one-time least squares P (M P + K K^T P)^-1 K R in float64."""
    key_FI = np.float64(np.concatenate(facts.key_EFI, axis=1))
    value_ID = np.concatenate(facts.value_EID)
    residual_ID = value_ID - key_FI.T @ weight_of(facts.model)
    inner_FF = p_FF @ (m_FF + key_FI @ key_FI.T) @ p_FF + np.eye(len(p_FF)) - p_FF
    return p_FF @ np.linalg.solve(inner_FF, p_FF @ key_FI @ residual_ID)


@pytest.mark.parametrize("method", [memit_sequential, encore, alphaedit])
def test_a_sequence_is_recursive_least_squares(facts, method):
    """It equals the batch, and both equal the one-time solution in float64."""
    F = facts.model.config.F
    m_FF, p_FF = LAMBDA * facts.moment_FF, np.eye(F)
    if method is encore:
        m_FF = m_FF + RIDGE * np.eye(F)
    if method is alphaedit:
        value_F, vector_FF = np.linalg.eigh(facts.moment_FF)
        u_FM = vector_FF[:, value_F < np.median(value_F)]
        m_FF, p_FF = L2 * np.eye(F), u_FM @ u_FM.T
    sequence_FD = change(facts, method(facts), ONE_BY_ONE)
    assert relative(sequence_FD, change(facts, method(facts), AT_ONCE)) < 1e-5
    assert relative(sequence_FD, one_time(facts, m_FF, p_FF)) < 1e-5


def test_without_past_keys_it_is_not(facts):
    """MEMIT: later edits write over earlier ones."""

    def regulariser_of(past, key_IF) -> KeyRegulariser:
        return KeyRegulariser(inverse_cholesky(facts.moment_FF, LAMBDA))

    sequence_FD = change(facts, regulariser_of, ONE_BY_ONE)
    assert relative(sequence_FD, change(facts, regulariser_of, AT_ONCE)) > 1e-2


@pytest.mark.parametrize("tau", [10**6, 2 * N_KEYS])
def test_betaedit_s_is_until_its_null_space_is_renewed(facts, tau):
    model, moment_FF = facts.model, facts.moment_FF
    hyper = betaedit.Hyper(
        layers=(LAYER,),
        lambda1=LAMBDA,
        lambda2=L2,
        tau=tau,
        nullspace_threshold=float(np.median(np.linalg.eigvalsh(moment_FF))),
    )

    def regulariser_of(past, key_IF) -> KeyRegulariser:
        whitener_MF = betaedit.whiten(hyper, LAYER, moment_FF)
        M, F = whitener_MF.shape
        start = {LAYER: KeyRegulariser(whitener_MF, no_past_keys(F, M))}
        inner = MultiLayerState((("{}",),), start)
        state = betaedit.State(inner, {LAYER: KeyHistory(moment_FF)}, model.mesh)
        for keys in past:
            state = betaedit.restore(hyper, state, Edit((), memory={f"keys/{LAYER}": keys}))
        return state.inner.regularisers[LAYER]

    sequence_FD = change(facts, regulariser_of, ONE_BY_ONE)
    off = relative(sequence_FD, change(facts, regulariser_of, AT_ONCE))
    assert off < 1e-5 if tau == 10**6 else off > 1e-2


def test_nse_s_is_not(facts):
    """Each edit chooses its neurons, and a second pass would choose among fewer facts."""
    hyper = nse.Hyper(layers=(LAYER,), mom2_update_weight=LAMBDA, neuron_threshold=0.6)

    def regulariser_of(past, key_IF) -> KeyRegulariser:
        history = KeyHistory(facts.moment_FF, recent=tuple(past))
        state = nse.State((("{}",),), {LAYER: history})
        return nse.neuron_regulariser(hyper, facts.model.mesh, state, LAYER, key_IF)

    sequence_FD = change(facts, regulariser_of, ONE_BY_ONE)
    assert relative(sequence_FD, change(facts, regulariser_of, AT_ONCE)) > 1e-2


def test_lyaplock_s_is_not(facts):
    """It solves again for what past edits reached, which is less than they were to; Z stays."""
    hyper = lyaplock.Hyper(layers=(LAYER,), mom2_update_weight=LAMBDA)
    F, D = facts.model.config.F, facts.model.config.D
    regulariser = KeyRegulariser(inverse_cholesky(facts.moment_FF), no_past_keys(F, F))

    def written(batches: list[list[int]]) -> np.ndarray:
        past = lyaplock.LayerHistory(np.zeros((0, F), np.float32), np.zeros((0, D), np.float32))
        changed_FD = np.zeros((F, D), np.float32)
        for batch in batches:
            key_IF = np.concatenate(facts.key_EFI[batch], axis=1).T
            held_ID = np.float64(key_IF) @ (weight_of(facts.model) + changed_FD)
            residual_ID = np.concatenate(facts.value_EID[batch]) - held_ID
            delta_FD, made, _ = lyaplock.write_facts(
                hyper, regulariser, past, changed_FD, key_IF, residual_ID
            )
            assert lyaplock.preservation(hyper, made) == pytest.approx(LAMBDA)
            past = made._replace(
                key_IF=np.concatenate([past.key_IF, made.key_IF]),
                value_ID=np.concatenate([past.value_ID, made.value_ID]),
            )
            changed_FD = changed_FD + delta_FD
        return changed_FD

    at_once_FD = written(AT_ONCE)
    assert relative(written(ONE_BY_ONE), at_once_FD) > 1e-2
    assert relative(at_once_FD, one_time(facts, LAMBDA * facts.moment_FF, np.eye(F))) < 1e-5


@pytest.mark.parametrize(
    "constraints",
    [
        UpdateConstraints(rect_keep=0.4),
        UpdateConstraints(prune_log_base=1.5),
        UpdateConstraints(max_norm_ratio=0.05),
        UpdateConstraints(sphere_share=0.3),
    ],
    ids=["RECT", "PRUNE", "cap", "SPHERE"],
)
def test_a_constrained_one_is_not(facts, constraints):
    # So low that PRUNE has something to restrain.
    largest = {(EDITED_WEIGHT, LAYER): 0.3}

    def constrain(model: jaxedit.Model, edit: Edit) -> Edit:
        return apply_to(constraints, model, edit, largest)

    regulariser_of = memit_sequential(facts)
    sequence_FD = change(facts, regulariser_of, ONE_BY_ONE, constrain)
    assert relative(sequence_FD, change(facts, regulariser_of, AT_ONCE, constrain)) > 1e-2


def test_nas_writes_other_values(facts):
    """Fixed vectors are added to what the layer holds at the moment, and that is then scaled."""
    mean, limit = 20.0, SKIP_LIMITS[Site.RESIDUAL]

    def scaled(batches: list[list[int]]) -> np.ndarray:
        weight_FD, past = weight_of(facts.model), []
        for batch in batches:
            key_FI = np.float64(np.concatenate(facts.key_EFI[batch], axis=1))
            v0_ID = key_FI.T @ weight_FD
            v_ID = v0_ID + np.concatenate(facts.value_EID[batch])
            norm_I1 = np.linalg.norm(v_ID, axis=1, keepdims=True)
            v_ID = np.where(norm_I1 > limit * mean, v0_ID, mean * v_ID / norm_I1)
            m_FF = LAMBDA * facts.moment_FF + sum(key @ key.T for key in past)
            system_FF = m_FF + key_FI @ key_FI.T
            weight_FD = weight_FD + np.linalg.solve(system_FF, key_FI @ (v_ID - v0_ID))
            past.append(key_FI)
        return weight_FD - weight_of(facts.model)

    assert relative(scaled(ONE_BY_ONE), scaled(AT_ONCE)) > 1e-2
    plain_FD = change(facts, memit_sequential(facts), AT_ONCE)
    assert relative(scaled(AT_ONCE), plain_FD) > 1e-2
