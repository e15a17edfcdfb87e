"""Keys that come again: as exact as others are without past keys, against NumPy in float64."""

from typing import NamedTuple

import numpy as np
import pytest
from reference.distance import relative

from jaxedit.editors import betaedit, nse
from jaxedit.edits.edit import EDITED_WEIGHT, Edit, to_dense
from jaxedit.mesh import make_mesh
from jaxedit.solving.key_history import KeyHistory, append
from jaxedit.solving.multi_layer import MultiLayerState
from jaxedit.solving.past_keys import no_past_keys
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.solve import add_past_keys, least_change
from jaxedit.solving.whiteners import inverse_cholesky, null_space

F, N_KEYS = 256, 4
MOST = {1e3: 2e-6, 1e6: 4e-5}  # condition of C -> the most that an update may be off


class Keys(NamedTuple):
    """C, keys of edits that repeat themselves to 1e-3, and values."""

    moment_FF: np.ndarray
    key_EFI: np.ndarray
    value_ID: np.ndarray


def repeated_keys(condition: float, n_edits: int, seed: int = 0) -> Keys:
    rng = np.random.default_rng(seed)
    q_FF, _ = np.linalg.qr(rng.standard_normal((F, F)))
    value_F = np.logspace(0, -np.log10(condition), F)

    def draw(*shape: int) -> np.ndarray:
        return (q_FF * np.sqrt(value_F)) @ rng.standard_normal((*shape, F, N_KEYS))

    key_EFI = 3 * draw() + 1e-3 * draw(n_edits)
    value_ID = rng.standard_normal((N_KEYS, 24)).astype(np.float32)
    return Keys((q_FF * value_F) @ q_FF.T, key_EFI.astype(np.float32), value_ID)


def published(m_FF: np.ndarray, keys: Keys) -> np.ndarray:
    """Evaluate (M + S + K K^T)^-1 K R, K the last keys and S of all before."""
    key_EFI = keys.key_EFI.astype(np.float64)
    for key_FI in key_EFI:
        m_FF = m_FF + key_FI @ key_FI.T
    return np.linalg.solve(m_FF, key_EFI[-1] @ keys.value_ID)


def change_of(regulariser: KeyRegulariser, keys: Keys) -> tuple[np.ndarray, float]:
    delta, residual = least_change(
        regulariser, EDITED_WEIGHT, 2, keys.key_EFI[-1], keys.value_ID, 1.0, "float64"
    )
    return to_dense(delta), residual


@pytest.mark.parametrize("n_edits", [1, 7, 20])
@pytest.mark.parametrize("condition", MOST)
def test_repeated_keys_are_exact_and_the_residual_says_how_exact(condition, n_edits):
    """Past keys as factors (one and seven edits) and folded (twenty)."""
    keys = repeated_keys(condition, n_edits + 1)
    regulariser = KeyRegulariser(inverse_cholesky(keys.moment_FF))
    for key_FI in keys.key_EFI[:-1]:
        regulariser = add_past_keys(regulariser, key_FI)
    change_FD, residual = change_of(regulariser, keys)
    off = relative(change_FD, published(keys.moment_FF, keys))
    assert off <= MOST[condition]
    assert off / 10 <= residual <= 10 * off


def test_a_residual_sees_past_keys_that_are_not_those_that_were_written():
    """One part in 10^5, of whitened past keys alone."""
    keys = repeated_keys(1e3, 6)
    regulariser = KeyRegulariser(inverse_cholesky(keys.moment_FF))
    for key_FI in keys.key_EFI[:-1]:
        regulariser = add_past_keys(regulariser, key_FI)
    past = regulariser.past
    assert past is not None
    noise_MR = np.random.default_rng(1).standard_normal(past.white_MR.shape)
    wrong_MR = past.white_MR * (1 + 1e-5 * noise_MR)
    wrong = past._replace(white_MR=wrong_MR, gram_RR=wrong_MR.T @ wrong_MR)
    change_FD, residual = change_of(regulariser._replace(past=wrong), keys)
    off = relative(change_FD, published(keys.moment_FF, keys))
    assert off > 1e-4
    assert residual >= off / 10


@pytest.mark.parametrize("condition", MOST)
def test_nse_keeps_what_its_past_keys_leave(condition):
    """All neurons chosen; S is part of what is factorised."""
    keys = repeated_keys(condition, 21)
    history = KeyHistory(keys.moment_FF)
    for key_FI in keys.key_EFI[:-1]:
        history = append(history, key_FI.T)
    hyper = nse.Hyper(layers=(2,), mom2_update_weight=1.0, neuron_threshold=1.0)
    state = nse.State((("{}",),), {2: history})
    mesh = make_mesh("data:1,model:1")
    regulariser = nse.neuron_regulariser(hyper, mesh, state, 2, keys.key_EFI[-1].T)
    change_FD, _ = change_of(regulariser, keys)
    assert relative(change_FD, published(keys.moment_FF, keys)) <= MOST[condition]


@pytest.mark.parametrize("condition", MOST)
def test_betaedit_keeps_what_its_past_keys_leave(condition):
    """After the renewal that the twentieth edit brings, whose null space is all there is."""
    keys = repeated_keys(condition, 21)
    hyper = betaedit.Hyper(layers=(2,), lambda1=1.0, lambda2=1e-14, tau=80, nullspace_threshold=1e9)
    mesh = make_mesh("data:1,model:1")
    state = betaedit.State(MultiLayerState((("{}",),), {}), {2: KeyHistory(keys.moment_FF)}, mesh)
    state = state._replace(inner=state.inner._replace(regularisers={2: KeyRegulariser()}))
    for key_FI in keys.key_EFI[:-1]:
        state = betaedit.restore(hyper, state, Edit((), memory={"keys/2": key_FI.T}))
    change_FD, _ = change_of(state.inner.regularisers[2], keys)
    assert relative(change_FD, published(keys.moment_FF, keys)) <= MOST[condition]


def test_alphaedit_s_null_space():
    """Half of the coordinates, L2 = 1e-3."""
    keys = repeated_keys(1e3, 21)
    u_FM = null_space(keys.moment_FF, 0.03, 2)
    whitener_MF = (u_FM.T / np.sqrt(1e-3)).astype(np.float32)
    regulariser = KeyRegulariser(whitener_MF, no_past_keys(F, u_FM.shape[1]))
    for key_FI in keys.key_EFI[:-1]:
        regulariser = add_past_keys(regulariser, key_FI)
    within = keys._replace(key_EFI=np.einsum("FM,EFI->EMI", u_FM, np.float64(keys.key_EFI)))
    wanted_FD = u_FM @ published(1e-3 * np.eye(u_FM.shape[1]), within)
    assert relative(change_of(regulariser, keys)[0], wanted_FD) <= MOST[1e3]
