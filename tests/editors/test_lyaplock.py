"""LyapLock against its authors' expressions in NumPy, float64, over a sequence of edits."""

import jax
import numpy as np
import pytest
from reference.distance import relative
from reference.multi_layer import GROUPS, LAYERS, REQUESTS, golden_moments, optimised_z, steps

import jaxedit
from jaxedit.editors import lyaplock
from jaxedit.edits.edit import EDITED_WEIGHT, edit_to_arrays, read_edit, to_dense
from jaxedit.files import to_safetensors
from jaxedit.solving.past_keys import no_past_keys
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.whiteners import inverse_cholesky

LAMBDA = 0.5
HYPER = dict(
    layers=LAYERS,
    context_templates=GROUPS,
    v_num_grad_steps=3,
    mom2_update_weight=LAMBDA,
    clamp_norm_factor=4.0,
)
BATCHES = (REQUESTS[:1], REQUESTS[1:2])


class Released:
    """A layer as the authors' code keeps it: W is out x in, V0 is without biases."""

    def __init__(self, weight_FD, c_FF, alpha: float):
        self.w_DF, self.c_FF, self.alpha = np.float64(weight_FD).T, c_FF, alpha
        self.v0k0_DF, self.v0v0_DD = self.w_DF @ c_FF, self.w_DF @ c_FF @ self.w_DF.T
        self.past_vk_DF, self.past_kk_FF = np.zeros_like(self.w_DF), np.zeros_like(c_FF)
        self.z = self.d = self.a = self.z_max = 0.0

    def lost(self, w_DF) -> float:
        """Compute PL, as their `compute_fro_by_trace`."""
        return (
            np.trace(self.c_FF @ w_DF.T @ w_DF)
            - 2 * np.trace(self.v0k0_DF @ w_DF.T)
            + np.trace(self.v0v0_DD)
        )

    def write(self, k_FI, r_ID) -> np.ndarray:
        """Write a batch; return delta W [F, D]."""
        weight = LAMBDA if self.d == 0 else self.a * self.z * LAMBDA
        left_DF = r_ID.T @ k_FI.T + weight * (self.v0k0_DF - self.w_DF @ self.c_FF)
        left_DF += self.past_vk_DF - self.w_DF @ self.past_kk_FF
        system_FF = k_FI @ k_FI.T + weight * self.c_FF + self.past_kk_FF
        change_DF = left_DF @ np.linalg.inv(system_FF)
        self.w_DF = self.w_DF + change_DF
        if self.d == 0:
            self.d = self.lost(self.w_DF)
            self.a = 1 / np.sqrt(self.alpha * self.d)
            self.z = self.z_max = np.sqrt(self.alpha * self.d)
        grown = self.z + self.a * (self.lost(self.w_DF) - self.alpha * self.d)
        self.z = max(grown, self.z_max)
        self.past_vk_DF += self.w_DF @ k_FI @ k_FI.T
        self.past_kk_FF += k_FI @ k_FI.T
        return change_DF.T


def setting(shared, golden, family: str, **more):
    model, moments = golden(family), golden_moments(shared, family)
    editor = jaxedit.make_editor("lyaplock", **HYPER, **more)
    return model, moments, editor, editor.init(model, jaxedit.Stats.from_moments(moments, 1000))


@pytest.mark.parametrize("alpha", [0.5, 60.0])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_a_layer_s_edits_are_the_authors(shared, golden, family, alpha):
    """One fact, two, these two again, more than the layer is wide; Z grows where alpha is low."""
    weight_FD = golden(family).base[EDITED_WEIGHT][2]
    moment_FF = golden_moments(shared, family)[2]
    theirs, (F, D) = Released(weight_FD, moment_FF, alpha), weight_FD.shape
    hyper = lyaplock.Hyper(layers=(2,), mom2_update_weight=LAMBDA, alpha=alpha)
    regulariser = KeyRegulariser(inverse_cholesky(moment_FF), no_past_keys(F, F))
    rng, changed_FD = np.random.default_rng(0), np.zeros((F, D), np.float32)
    root_FF = np.linalg.cholesky(moment_FF)
    past = lyaplock.LayerHistory(np.zeros((0, F), np.float32), np.zeros((0, D), np.float32))
    twice_2F = (rng.standard_normal((2, F)) @ root_FF.T).astype(np.float32)
    for n_keys in (1, 2, 2, F):
        key_IF = (rng.standard_normal((n_keys, F)) @ root_FF.T).astype(np.float32)
        key_IF = twice_2F if n_keys == 2 else key_IF
        residual_ID = rng.standard_normal((n_keys, D))
        delta_FD, facts, _ = lyaplock.write_facts(
            hyper, regulariser, past, changed_FD, key_IF, residual_ID
        )
        wanted_FD = theirs.write(np.float64(key_IF).T, residual_ID)
        assert relative(delta_FD, wanted_FD) < 1e-4, n_keys
        assert (facts.queue, facts.budget) == pytest.approx((theirs.z, theirs.d), rel=1e-4)
        assert (theirs.z > theirs.z_max) == (alpha < 1 or n_keys == F)
        changed_FD = changed_FD + delta_FD
        key_IF = np.concatenate([past.key_IF, facts.key_IF])
        value_ID = np.concatenate([past.value_ID, facts.value_ID])
        past = facts._replace(key_IF=key_IF, value_ID=value_ID)


def test_two_edits_of_a_model_are_the_authors(shared, golden):
    """Keys and residuals of two layers, the second on what the first one left."""
    model, moments, editor, state = setting(shared, golden, "llama", alpha=0.5)
    released = {
        layer: Released(model.base[EDITED_WEIGHT][layer], moments[layer], 0.5) for layer in LAYERS
    }
    for requests in BATCHES:
        z_ID = optimised_z(model, requests, editor.hyper)
        edit, state, info = editor.edit(model, requests, state)
        for step in steps(model, requests, edit.deltas, z_ID):
            theirs, mine = released[step.layer], state.histories[step.layer]
            wanted_FD = theirs.write(step.key_FI, step.residual_ID)
            assert relative(step.delta_FD, wanted_FD) < 1e-4, step.layer
            assert (mine.queue, mine.budget) == pytest.approx((theirs.z, theirs.d), rel=1e-4)
            weight = info[f"preservation_layer_{step.layer}"]
            assert weight == pytest.approx(LAMBDA * theirs.a * theirs.z, rel=1e-4)
        assert info["solve_residual"] < 1e-4
        model = jaxedit.apply(model, edit)


def test_first_edit_is_memit_s(shared, golden):
    model, moments, editor, state = setting(shared, golden, "llama")
    memit = jaxedit.make_editor("memit", **HYPER)
    theirs, _, _ = memit.edit(
        model, BATCHES[0], memit.init(model, jaxedit.Stats.from_moments(moments, 1000))
    )
    mine, _, _ = editor.edit(model, BATCHES[0], state)
    for a, b in zip(mine.deltas, theirs.deltas, strict=True):
        assert relative(to_dense(a), to_dense(b)) < 1e-5


def test_state_of_a_journal_is_the_same_bits(shared, golden, tmp_path):
    """Also on a model that had edits before, which are part of what is preserved."""
    model, moments, editor, _ = setting(shared, golden, "llama", alpha=0.5)
    memit = jaxedit.make_editor("memit", **HYPER)
    stats = jaxedit.Stats.from_moments(moments, 1000)
    before, _, _ = memit.edit(model, BATCHES[1], memit.init(model, stats))
    model = start = jaxedit.apply(model, before)
    state = rebuilt = editor.init(start, stats)
    for requests in BATCHES:
        edit, state, _ = editor.edit(model, requests, state)
        path = tmp_path / "step.safetensors"
        path.write_bytes(to_safetensors(*edit_to_arrays(edit)))
        rebuilt = editor.restore(rebuilt, read_edit(path))
        model = jaxedit.apply(model, edit)
    mine, theirs = jax.tree.leaves(state), jax.tree.leaves(rebuilt)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    # The first one, from a model with edits, takes nothing of these back.
    first, _, _ = editor.edit(start, BATCHES[0], editor.init(start, stats))
    again, _, _ = memit.edit(start, BATCHES[0], memit.init(start, stats))
    assert relative(to_dense(first.deltas[0]), to_dense(again.deltas[0])) < 1e-5
