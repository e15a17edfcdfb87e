"""NSE against its formula in float64: neurons that change, values written, facts written again."""

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
    packed,
    steps,
)

import jaxedit
from jaxedit.editors.nse import choose_neurons
from jaxedit.edits.apply import without_edits
from jaxedit.edits.edit import LowRank, to_dense
from jaxedit.solving.key_history import KeyHistory, append, gram
from jaxedit.solving.keys import compute_keys, compute_values

LAMBDA, SHARE = 0.7, 0.6
HYPER = dict(
    layers=LAYERS,
    context_templates=GROUPS,
    v_num_grad_steps=6,
    mom2_update_weight=LAMBDA,
    neuron_threshold=SHARE,
    alpha=0.0,
    max_iterations=2,
)


@pytest.fixture(scope="module", params=["llama"])
def setting(request, shared, golden):
    """Load a golden model and its second moments."""
    return golden(request.param), golden_moments(shared, request.param)


def make(moments, model, **changes):
    editor = jaxedit.make_editor("nse", **{**HYPER, **changes})
    return editor, editor.init(model, jaxedit.Stats.from_moments(moments, 1000))


def held(model, requests):
    """Compute the residual stream after the last layer at the bare subjects."""
    return compute_values(model, packed(model, requests), LAYERS[-1])


def wanted(step, c_FF: np.ndarray, s_FF: np.ndarray) -> np.ndarray:
    """Evaluate the authors' expression: rows of the chosen neurons, zeros elsewhere."""
    score_F = np.abs(step.key_FI).sum(axis=1)
    order_F = np.argsort(-score_F)
    chosen = order_F[np.cumsum(score_F[order_F]) <= SHARE * score_F.sum()]
    assert 0 < len(chosen) < len(score_F) / 2
    key_MI = step.key_FI[chosen]
    m_MM = LAMBDA * c_FF[chosen][:, chosen] + s_FF[chosen][:, chosen] + key_MI @ key_MI.T
    wanted_FD = np.zeros_like(step.delta_FD, dtype=np.float64)
    wanted_FD[chosen] = np.linalg.solve(m_MM, key_MI) @ step.residual_ID
    return wanted_FD


def test_two_edits(setting):
    """The second z is of the model without edits; its M holds the first one's written keys."""
    original, moments = setting
    editor, state = make(moments, original)
    first, state, _ = editor.edit(original, REQUESTS[:1], state)
    once = jaxedit.apply(original, first)
    second, _, _ = editor.edit(once, REQUESTS[1:], state)
    z_edited = optimised_z(once, REQUESTS[1:], editor.hyper)
    z_unedited = optimised_z(original, REQUESTS[1:], editor.hyper)
    assert relative(z_edited, z_unedited) > 1e-3
    for model, edit, requests, before in (
        (original, first, REQUESTS[:1], None),
        (once, second, REQUESTS[1:], first),
    ):
        z_ID = optimised_z(original, requests, editor.hyper)
        for step in steps(model, requests, edit.deltas, z_ID):
            c_FF, s_FF = moments[step.layer], np.zeros_like(moments[step.layer])
            if before is not None:
                key_IF = compute_keys(once, packed(model, REQUESTS[:1]), step.layer)[0]
                key_IF = np.float64(key_IF)
                np.testing.assert_allclose(
                    before.memory[f"keys/{step.layer}"], key_IF, rtol=1e-4, atol=1e-5
                )
                s_FF = key_IF.T @ key_IF
            expected_FD = wanted(step, c_FF, s_FF)
            assert relative(step.delta_FD, expected_FD) < 1e-4
            np.testing.assert_array_equal(step.delta_FD[~expected_FD.any(axis=1)], 0)


def test_facts_that_stay_far_are_written_again(setting):
    """Two passes: the second for facts still more than alpha away, on the model with the first."""
    model, moments = setting
    one_pass, state = make(moments, model)
    z_ID = optimised_z(model, REQUESTS, one_pass.hyper)
    edit, _, info = one_pass.edit(model, REQUESTS, state)
    once = jaxedit.apply(model, edit)
    distance_I = np.linalg.norm(z_ID - held(once, REQUESTS), axis=1)
    assert info["n_passes"] == 1
    assert info["z_distance"] == pytest.approx(distance_I.max(), rel=1e-4)

    # An alpha that one fact is within after one pass, and none before.
    alpha = float(np.sort(distance_I)[:2].mean())
    assert alpha < np.linalg.norm(z_ID - held(model, REQUESTS), axis=1).min()
    editor, state = make(moments, model, alpha=alpha, max_iterations=3)
    edit, _, info = editor.edit(model, REQUESTS, state)
    assert info["n_passes"] == 2
    far = [i for i in range(len(REQUESTS)) if distance_I[i] > alpha]
    assert len(far) == 2

    # The two passes' factors lie side by side.
    n_first, again = len(REQUESTS), [REQUESTS[i] for i in far]
    first_pass = [
        LowRank(*delta[:2], delta.u_FR[:, :n_first], delta.v_RD[:n_first]) for delta in edit.deltas
    ]
    second_pass = [
        LowRank(*delta[:2], delta.u_FR[:, n_first:], delta.v_RD[n_first:]) for delta in edit.deltas
    ]
    for now, requests, deltas, z in (
        (model, REQUESTS, first_pass, z_ID),
        (once, again, second_pass, z_ID[far]),
    ):
        for step in steps(now, requests, deltas, z):
            c_FF = moments[step.layer]
            assert relative(step.delta_FD, wanted(step, c_FF, np.zeros_like(c_FF))) < 1e-4

    # All facts' keys, as both passes leave them.
    twice = jaxedit.apply(model, edit)
    last_distance_I = np.linalg.norm(z_ID - held(twice, REQUESTS), axis=1)
    assert info["z_distance"] == pytest.approx(last_distance_I.max(), rel=1e-4)
    for layer in LAYERS:
        key_IF = compute_keys(twice, packed(model, REQUESTS), layer)[0]
        np.testing.assert_allclose(edit.memory[f"keys/{layer}"], key_IF, rtol=1e-4, atol=1e-5)


def test_what_is_near_or_hopelessly_far_is_left(setting):
    model, moments = setting
    editor, state = make(moments, model)
    z_ID = optimised_z(model, REQUESTS, editor.hyper)
    distance_I = np.linalg.norm(z_ID - held(model, REQUESTS), axis=1)
    low, middle, high = np.sort(distance_I)
    order = np.argsort(distance_I)
    bounds = dict(alpha=float(low + middle) / 2, upper_bound=float(middle + high) / 2)
    editor, state = make(moments, model, **bounds)
    edit, _, _ = editor.edit(model, REQUESTS, state)
    alone, _, _ = editor.edit(model, [REQUESTS[order[1]]], state)
    for mine, theirs in zip(edit.deltas, alone.deltas, strict=True):
        assert mine.u_FR.shape[1] == 1
        assert relative(mine.u_FR @ mine.v_RD, theirs.u_FR @ theirs.v_RD) < 1e-4


def test_facts_that_hold_change_nothing_and_their_keys_count(setting):
    """As released: S grows by the keys of facts that are not due, and the next edit heeds them."""
    model, moments = setting
    holding, state = make(moments, model, alpha=1e6, upper_bound=1e9)
    edit, after, info = holding.edit(model, REQUESTS[:2], state)
    assert (info["n_passes"], edit.norm, info["solve_residual"]) == (0, 0, 0)
    assert all(not to_dense(delta).any() for delta in edit.deltas)
    editor, _ = make(moments, model)
    next_edit, _, _ = editor.edit(jaxedit.apply(model, edit), REQUESTS[2:], after)
    z_ID = optimised_z(model, REQUESTS[2:], editor.hyper)
    for step in steps(model, REQUESTS[2:], next_edit.deltas, z_ID):
        key_IF = np.float64(compute_keys(model, packed(model, REQUESTS[:2]), step.layer)[0])
        np.testing.assert_allclose(edit.memory[f"keys/{step.layer}"], key_IF, rtol=1e-4, atol=1e-5)
        expected_FD = wanted(step, moments[step.layer], key_IF.T @ key_IF)
        assert relative(step.delta_FD, expected_FD) < 1e-4


def test_restored_state_is_the_same(setting):
    model, moments = setting
    editor, state = make(moments, model)
    rebuilt = state
    for request in REQUESTS:
        edit, state, _ = editor.edit(model, [request], state)
        rebuilt = editor.restore(rebuilt, edit)
        model = jaxedit.apply(model, edit)
    mine, theirs = jax.tree.leaves(state), jax.tree.leaves(rebuilt)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_edits_shares_every_array(setting):
    model, moments = setting
    editor, state = make(moments, model)
    edited = jaxedit.apply(model, editor.edit(model, REQUESTS, state)[0])
    unedited = without_edits(edited)
    tokens = [model.tokenizer.encode(REQUESTS[0].prompt_text)]
    np.testing.assert_array_equal(jaxedit.logits(unedited, tokens), jaxedit.logits(model, tokens))
    assert not np.array_equal(jaxedit.logits(edited, tokens), jaxedit.logits(model, tokens))
    assert all(unedited.base[name] is array for name, array in edited.base.items())
    deltas = edited.overlay.delta.items()
    assert all(unedited.overlay.delta[name] is array for name, array in deltas)


@pytest.mark.parametrize(
    ("share", "count"), [(0.1, 1), (0.5, 1), (0.79, 1), (0.8, 2), (0.9, 3), (1.0, 4)]
)
def test_neurons_that_hold_a_share(share, count):
    """|k| summed over two keys is 1, 5, 1, 3."""
    key_IF = np.array([[0.5, -5, 0.25, 1], [-0.5, 0, -0.75, -2]], np.float32)
    assert list(choose_neurons(key_IF, share)) == sorted([1, 3, 0, 2][:count])


def test_keys_are_added_up_when_they_are_many():
    rng = np.random.default_rng(0)
    history = KeyHistory(np.eye(32))
    keys = [rng.standard_normal((3, 32)).astype(np.float32) for _ in range(3)]
    for key_IF in keys:
        history = append(history, key_IF)
    assert history.gram_FF is not None
    assert 0 < sum(map(len, history.recent)) <= 4
    all_IF = np.float64(np.concatenate(keys))
    s_FF = all_IF.T @ all_IF
    np.testing.assert_allclose(gram(history), s_FF, rtol=1e-12, atol=1e-12)
    chosen = np.array([3, 20, 7])
    expected_MM = s_FF[np.ix_(chosen, chosen)]
    np.testing.assert_allclose(gram(history, chosen), expected_MM, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        dict(neuron_threshold=0.0),
        dict(neuron_threshold=1.5),
        dict(alpha=-1.0),
        dict(max_iterations=1),
    ],
)
def test_a_hyper_parameter_that_cannot_be_meant(setting, change):
    model, moments = setting
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}={change[name]}"):
        make(moments, model, **change)
