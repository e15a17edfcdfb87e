"""NSE against its formula in float64: which neurons change, on which weights the values are found,
who is written again.
"""

import jax
import numpy as np
import pytest
from reference.multi_layer import (
    GROUPS,
    LAYERS,
    REQUESTS,
    TEMPLATES,
    golden_moments,
    relative,
    steps,
)

import jaxedit
from jaxedit.editors.nse import neurons
from jaxedit.edits.edit import LowRank, without_edits
from jaxedit.solving.key_history import KeyHistory, append, gram
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.packed_prompts import pack_prompts
from jaxedit.solving.value import optimise_values

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
    """A golden model and its second moments."""
    return golden(request.param), golden_moments(shared, request.param)


def make(moments, model, **changes):
    editor = jaxedit.make_editor("nse", **{**HYPER, **changes})
    return editor, editor.init(model, jaxedit.Stats.from_moments(moments, 1000))


def z_of(editor, model, requests):
    found = optimise_values(
        model, requests, TEMPLATES, LAYERS[-1], editor.hyper.target(), residual=True
    )
    return np.float64(found.init_ND + found.delta_ND)


def held(model, requests):
    """The residual stream after the last layer at the bare subjects."""
    return compute_values(model, pack_prompts(model, requests, GROUPS, "group_means"), LAYERS[-1])


def wanted(step, c_FF: np.ndarray, s_FF: np.ndarray) -> np.ndarray:
    """The authors' expression: rows of the chosen neurons, zeros elsewhere."""
    score_F = np.abs(step.key_FN).sum(axis=1)
    order = np.argsort(-score_F)
    at = order[np.cumsum(score_F[order]) <= SHARE * score_F.sum()]
    assert 0 < len(at) < len(score_F) / 2
    key_SN = step.key_FN[at]
    m_SS = LAMBDA * c_FF[at][:, at] + s_FF[at][:, at] + key_SN @ key_SN.T
    found_FD = np.zeros_like(step.delta_FD, dtype=np.float64)
    found_FD[at] = np.linalg.solve(m_SS, key_SN) @ step.value_ND
    return found_FD


def test_two_edits(setting):
    """The second one's z is found on the model that has no edit, and its M holds the first one's
    keys after their write.
    """
    original, moments = setting
    editor, state = make(moments, original)
    first, state, _ = editor.edit(original, REQUESTS[:1], state)
    once = jaxedit.apply(original, first)
    second, _, _ = editor.edit(once, REQUESTS[1:], state)
    assert relative(z_of(editor, once, REQUESTS[1:]), z_of(editor, original, REQUESTS[1:])) > 1e-3
    for model, edit, requests, before in (
        (original, first, REQUESTS[:1], None),
        (once, second, REQUESTS[1:], first),
    ):
        for step in steps(model, requests, edit.deltas, z_of(editor, original, requests)):
            c_FF, s_FF = moments[step.layer], np.zeros_like(moments[step.layer])
            if before is not None:
                questions = pack_prompts(model, REQUESTS[:1], GROUPS, "group_means")
                key_NF = np.float64(compute_keys(once, questions, step.layer)[0])
                np.testing.assert_allclose(
                    before.memory[f"keys/{step.layer}"], key_NF, rtol=1e-4, atol=1e-5
                )
                s_FF = key_NF.T @ key_NF
            expected_FD = wanted(step, c_FF, s_FF)
            assert relative(step.delta_FD, expected_FD) < 1e-4
            np.testing.assert_array_equal(step.delta_FD[~expected_FD.any(axis=1)], 0)


def test_facts_that_stay_far_are_written_again(setting):
    """Two passes: the second is for what is still more than alpha away after the first."""
    model, moments = setting
    one_pass, state = make(moments, model)
    z_ND = z_of(one_pass, model, REQUESTS)
    edit, _, info = one_pass.edit(model, REQUESTS, state)
    once = jaxedit.apply(model, edit)
    distance_N = np.linalg.norm(z_ND - held(once, REQUESTS), axis=1)
    assert info["n_passes"] == 1
    alpha = float(np.sort(distance_N)[:2].mean())
    assert alpha < np.linalg.norm(z_ND - held(model, REQUESTS), axis=1).min()
    editor, state = make(moments, model, alpha=alpha, max_iterations=3)
    edit, _, info = editor.edit(model, REQUESTS, state)
    assert info["n_passes"] == 2
    due = [n for n in range(len(REQUESTS)) if distance_N[n] > alpha]
    assert len(due) == 2
    n_first, again = len(REQUESTS), [REQUESTS[n] for n in due]
    passes = (
        [
            LowRank(*delta[:2], delta.u_FR[:, :n_first], delta.v_RD[:n_first])
            for delta in edit.deltas
        ],
        [
            LowRank(*delta[:2], delta.u_FR[:, n_first:], delta.v_RD[n_first:])
            for delta in edit.deltas
        ],
    )
    for now, requests, deltas, z in (
        (model, REQUESTS, passes[0], z_ND),
        (once, again, passes[1], z_ND[due]),
    ):
        for step in steps(now, requests, deltas, z):
            assert (
                relative(
                    step.delta_FD,
                    wanted(step, moments[step.layer], np.zeros_like(moments[step.layer])),
                )
                < 1e-4
            )
    twice, questions = (
        jaxedit.apply(model, edit),
        pack_prompts(model, REQUESTS, GROUPS, "group_means"),
    )
    for layer in LAYERS:  # all facts' keys, as both passes leave them
        key_NF = compute_keys(twice, questions, layer)[0]
        np.testing.assert_allclose(edit.memory[f"keys/{layer}"], key_NF, rtol=1e-4, atol=1e-5)


def test_what_is_near_or_hopelessly_far_is_left(setting):
    model, moments = setting
    editor, state = make(moments, model)
    distance_N = np.linalg.norm(z_of(editor, model, REQUESTS) - held(model, REQUESTS), axis=1)
    low, middle, high = np.sort(distance_N)
    order = np.argsort(distance_N)
    bounds = dict(alpha=float(low + middle) / 2, upper_bound=float(middle + high) / 2)
    editor, state = make(moments, model, **bounds)
    edit, _, _ = editor.edit(model, REQUESTS, state)
    alone, _, _ = editor.edit(model, [REQUESTS[order[1]]], state)
    for mine, theirs in zip(edit.deltas, alone.deltas, strict=True):
        assert mine.u_FR.shape[1] == 1
        assert relative(mine.u_FR @ mine.v_RD, theirs.u_FR @ theirs.v_RD) < 1e-4
    with pytest.raises(
        ValueError, match=r"none between alpha=.* and upper_bound=.*: nothing to write"
    ):
        editor.edit(model, [REQUESTS[order[0]], REQUESTS[order[2]]], state)


def test_absorbing_gives_the_same_state(setting):
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


def test_unedited_shares_every_array(setting):
    model, moments = setting
    editor, state = make(moments, model)
    edited = jaxedit.apply(model, editor.edit(model, REQUESTS, state)[0])
    tokens = [model.tokenizer.encode(REQUESTS[0].prompt_text)]
    np.testing.assert_array_equal(
        jaxedit.logits(without_edits(edited), tokens), jaxedit.logits(model, tokens)
    )
    assert not np.array_equal(jaxedit.logits(edited, tokens), jaxedit.logits(model, tokens))
    assert all(without_edits(edited).base[name] is array for name, array in edited.base.items())
    assert all(
        without_edits(edited).overlay.delta[name] is array
        for name, array in edited.overlay.delta.items()
    )


@pytest.mark.parametrize(
    ("share", "count"), [(0.1, 1), (0.5, 1), (0.79, 1), (0.8, 2), (0.9, 3), (1.0, 4)]
)
def test_neurons_that_hold_a_share(share, count):
    """|k| summed over two keys is 1, 5, 1, 3."""
    key_NF = np.array([[0.5, -5, 0.25, 1], [-0.5, 0, -0.75, -2]], np.float32)
    assert list(neurons(key_NF, share)) == sorted([1, 3, 0, 2][:count])


def test_keys_are_added_up_when_they_are_many():
    rng = np.random.default_rng(0)
    past, keys = (
        KeyHistory(np.eye(32)),
        [rng.standard_normal((3, 32)).astype(np.float32) for _ in range(3)],
    )
    for key_NF in keys:
        past = append(past, key_NF)
    assert past.gram_FF is not None
    assert 0 < sum(map(len, past.recent)) <= 4
    every = np.float64(np.concatenate(keys))
    np.testing.assert_allclose(gram(past), every.T @ every, rtol=1e-12, atol=1e-12)
    at = np.array([3, 20, 7])
    np.testing.assert_allclose(
        gram(past, at), (every.T @ every)[np.ix_(at, at)], rtol=1e-12, atol=1e-12
    )


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
