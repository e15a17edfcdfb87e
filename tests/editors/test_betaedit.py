"""BetaEdit against its formula in float64, through a renewal of the null space."""

import jax
import numpy as np
import pytest
from reference.distance import relative
from reference.multi_layer import (
    GROUPS,
    LAYERS,
    REQUESTS,
    golden_moments,
    optimised_z,
    steps,
)

import jaxedit

HYPER = dict(
    layers=LAYERS,
    context_templates=GROUPS,
    v_num_grad_steps=6,
    nullspace_threshold=0.5,
    lambda1=0.5,
    lambda2=0.3,
)


def projection(protected_FF: np.ndarray) -> np.ndarray:
    """Compute P = U U^T on the singular vectors below the threshold, as the authors' code does."""
    u_FF, value_F, _ = np.linalg.svd(protected_FF)
    u_FM = u_FF[:, value_F < HYPER["nullspace_threshold"]]
    return u_FM @ u_FM.T


def gram(edits, layer: int) -> np.ndarray:
    """Sum up S of the edits before: their keys before the write."""
    keys = np.concatenate([np.float64(edit.memory[f"keys/{layer}"]) for edit in edits])
    return keys.T @ keys


@pytest.fixture(scope="module", params=["llama"])
def setting(request, shared, golden):
    """Load a model, its second moments, and an editor that renews U after two facts."""
    moments = golden_moments(shared, request.param)
    return golden(request.param), moments, jaxedit.make_editor("betaedit", tau=2, **HYPER)


def start(editor, model, moments):
    return editor.init(model, jaxedit.Stats.from_moments(moments, 1000))


def test_updates_before_and_after_a_renewal(setting):
    """One fact, one fact with S in the same null space, and two facts in the renewed one."""
    model, moments, editor = setting
    state, edits = start(editor, model, moments), []
    for i, requests in enumerate([REQUESTS[:1], REQUESTS[1:2], REQUESTS[1:]]):
        z_ID = optimised_z(model, requests, editor.hyper)
        edit, state, info = editor.edit(model, requests, state)
        for layer, key_FI, residual_ID, delta_FD in steps(model, requests, edit.deltas, z_ID):
            c_FF = moments[layer]
            s_FF = gram(edits, layer) if edits else np.zeros_like(c_FF)
            p_FF = projection(c_FF)
            if i == 2:
                renewed_FF = projection((s_FF / 2 + 0.5 * c_FF) / 1.5)
                assert relative(renewed_FF, p_FF) > 0.1
                p_FF = renewed_FF
            m_FF = key_FI @ key_FI.T + s_FF + 0.5 * c_FF
            system_FF = p_FF @ m_FF + 0.3 * np.eye(len(c_FF))
            wanted_FD = np.linalg.solve(system_FF, p_FF @ key_FI @ residual_ID)
            assert relative(delta_FD, wanted_FD) < 1e-4, (i, layer)
            np.testing.assert_allclose(edit.memory[f"keys/{layer}"], key_FI.T, rtol=1e-4, atol=1e-5)
        assert info["solve_residual"] < 1e-4
        model = jaxedit.apply(model, edit)
        edits.append(edit)
        assert (state.n_facts, state.n_at_renewal) == [(1, 0), (2, 2), (4, 4)][i]


def test_restored_state_is_the_same(setting):
    model, moments, editor = setting
    state = rebuilt = start(editor, model, moments)
    for requests in (REQUESTS[:1], REQUESTS[1:2], REQUESTS[2:]):
        edit, state, _ = editor.edit(model, requests, state)
        rebuilt = editor.restore(rebuilt, edit)
        model = jaxedit.apply(model, edit)
    mine, theirs = jax.tree.leaves(state), jax.tree.leaves(rebuilt)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert state.n_at_renewal == 2


def test_an_update_over_the_limit_is_refused(setting):
    model, moments, _ = setting
    free = jaxedit.make_editor("betaedit", **HYPER)
    edit, _, info = free.edit(model, REQUESTS, start(free, model, moments))
    worst = max(LAYERS, key=lambda layer: info[f"norm_layer_{layer}"])
    most = info[f"norm_layer_{worst}"] / np.sqrt(len(REQUESTS))
    allowed = jaxedit.make_editor("betaedit", norm_limit=most * 1.001, **HYPER)
    again, _, _ = allowed.edit(model, REQUESTS, start(allowed, model, moments))
    assert len(again.deltas) == len(edit.deltas)
    refused = jaxedit.make_editor("betaedit", norm_limit=most * 0.999, **HYPER)
    message = rf"update of layer {worst} has norm / sqrt\(3 facts\) = .*over norm_limit="
    with pytest.raises(ValueError, match=message):
        refused.edit(model, REQUESTS, start(refused, model, moments))


@pytest.mark.parametrize(
    "change", [dict(tau=0), dict(lambda1=-1.0), dict(lambda2=0.0), dict(norm_limit=0.0)]
)
def test_a_hyper_parameter_that_cannot_be_meant(setting, change):
    model, moments, _ = setting
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}={change[name]}"):
        start(jaxedit.make_editor("betaedit", **{**HYPER, **change}), model, moments)
