"""RECT, PRUNE and the norm cap: their formulas in float64, and what they leave alone."""

import math

import numpy as np
import pytest
from reference.distance import relative

import jaxedit
from jaxedit import Dense, LowRank
from jaxedit.edits.edit import EDITED_WEIGHT, make_edit, to_dense
from jaxedit.solving.update_constraints import UpdateConstraints, apply_to, prune_spectrum

LAYER = 2
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "English"),
]


def rome(**constraints):
    return jaxedit.make_editor(
        "rome", layer=LAYER, v_num_grad_steps=4, context_templates=("{}",), **constraints
    )


@pytest.fixture(scope="module")
def model(golden):
    return golden("llama")


@pytest.fixture(scope="module")
def plain(model):
    """Make an update without constraints."""
    editor = rome()
    return editor.edit(model, REQUESTS[:1], editor.init(model, None))[0]


def base(model) -> np.ndarray:
    return np.asarray(model.base[EDITED_WEIGHT][LAYER], np.float64)


def edit_with(model, request, **constraints):
    editor = rome(**constraints)
    return editor.edit(model, [request], editor.init(model, None))[0]


def test_cap(model, plain):
    limit = 0.5 * plain.norm / np.linalg.norm(base(model))
    capped = edit_with(model, REQUESTS[0], max_norm_ratio=float(limit))
    assert isinstance(capped.deltas[0], LowRank)
    np.testing.assert_allclose(
        to_dense(capped.deltas[0]), 0.5 * to_dense(plain.deltas[0]), rtol=1e-5, atol=1e-7
    )
    free = edit_with(model, REQUESTS[0], max_norm_ratio=4 * float(limit))
    np.testing.assert_array_equal(to_dense(free.deltas[0]), to_dense(plain.deltas[0]))


def test_rect_keeps_the_entries_that_change_most_in_proportion(model, plain):
    once = jaxedit.apply(model, plain)
    second = edit_with(once, REQUESTS[1])
    kept = edit_with(once, REQUESTS[1], rect_keep=0.4)
    change_FD = to_dense(second.deltas[0]).astype(np.float64)
    # A share of the weight as it is edited, not as it was.
    share_FD = np.abs(change_FD / (base(model) + to_dense(plain.deltas[0])))
    smallest_kept = np.sort(share_FD, axis=None)[int(0.6 * share_FD.size)]
    wanted_FD = np.where(share_FD >= smallest_kept, change_FD, 0)
    assert isinstance(kept.deltas[0], Dense)
    found_FD = to_dense(kept.deltas[0])
    # As its authors count: N (1 - 0.4) entries, rounded down, are dropped.
    assert np.count_nonzero(found_FD) == share_FD.size - int(0.6 * share_FD.size)
    # A tie or two may fall the other way in float32.
    assert np.mean((found_FD != 0) != (wanted_FD != 0)) < 1e-3
    agree = (found_FD != 0) & (wanted_FD != 0)
    np.testing.assert_allclose(found_FD[agree], wanted_FD[agree], rtol=1e-6)


def test_pruned_singular_values():
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.standard_normal((12, 5)))
    v, _ = np.linalg.qr(rng.standard_normal((7, 5)))
    values, largest = np.array([30.0, 8.0, 3.0, 2.9, 0.5]), 3.0
    found = np.linalg.svd(prune_spectrum((u * values) @ v.T, largest, math.e))[1][:5]
    wanted = [math.log(30) - math.log(3) + 3, math.log(8) - math.log(3) + 3, 3.0, 2.9, 0.5]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    halves = np.linalg.svd(prune_spectrum((u * values) @ v.T, largest, 2.0))[1][:5]
    assert halves[0] == pytest.approx(math.log2(30 / 3) + 3, rel=1e-5)


def test_prune_restrains_the_whole_change(model):
    """The change by several edits is what PRUNE makes of their sum, and undo is still exact."""
    size = 3 * np.linalg.norm(base(model), 2)
    rng = np.random.default_rng(1)
    F, D = base(model).shape
    u, v = rng.standard_normal((F, 1)), rng.standard_normal((1, D))
    big = size * u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
    prune = UpdateConstraints(prune_log_base=math.e)
    largest = {(EDITED_WEIGHT, LAYER): float(np.linalg.norm(base(model), 2))}
    first = apply_to(prune, model, make_edit(model, [Dense(EDITED_WEIGHT, LAYER, big)]), largest)
    once = jaxedit.apply(model, first)
    second = apply_to(
        prune, once, make_edit(model, [Dense(EDITED_WEIGHT, LAYER, 0.7 * big)]), largest
    )
    twice = jaxedit.apply(once, second)
    s_max = largest[EDITED_WEIGHT, LAYER]
    after_one = math.log(3) + s_max
    after_two = math.log((after_one + 0.7 * size) / s_max) + s_max
    found = np.linalg.norm(np.asarray(twice.overlay.delta[EDITED_WEIGHT][0]), 2)
    assert found == pytest.approx(after_two, rel=1e-5)
    tokens = [model.tokenizer.encode("The Eiffel Tower")]
    np.testing.assert_array_equal(
        np.asarray(jaxedit.logits(jaxedit.undo(twice, second), tokens)),
        np.asarray(jaxedit.logits(once, tokens)),
    )


@pytest.mark.parametrize("base_of_log", [math.e, 1.5])
def test_prune_at_the_end_is_of_the_plain_sum(golden, base_of_log):
    """f(a + b + c) of three edits made without it, by NumPy; after every edit it is another."""
    model = golden("gptj")
    hyper = dict(layers=(2, 3), mom2_adjustment=False, mom2_update_weight=1e-3)
    hyper |= dict(v_num_grad_steps=6, context_templates=(("{}",),), v_lr=5.0)
    hyper |= dict(clamp_norm_factor=100.0, v_weight_decay=0.0, kl_factor=0.0)
    plain = jaxedit.make_editor("memit", **hyper)
    online = jaxedit.make_editor("memit", prune_log_base=base_of_log, **hyper)
    edited, restrained = model, model
    for request in [*REQUESTS, jaxedit.Request("{} plays the", "Miles Davis", "violin")]:
        edited = jaxedit.apply(edited, plain.edit(edited, [request], plain.init(model, None))[0])
        made, _, _ = online.edit(restrained, [request], online.init(model, None))
        restrained = jaxedit.apply(restrained, made)
    pruned = jaxedit.prune(edited, base_of_log)
    assert [delta.layer for delta in pruned.deltas] == [2, 3]
    n_restrained = 0
    for slot, delta in enumerate(pruned.deltas):
        weight_FD = np.asarray(model.base[EDITED_WEIGHT][delta.layer], np.float64)
        sum_FD = np.asarray(edited.overlay.delta[EDITED_WEIGHT][slot], np.float64)
        u_FR, value_R, v_RD = np.linalg.svd(sum_FD, full_matrices=False)
        s_max = np.linalg.svd(weight_FD, compute_uv=False)[0]
        is_over_R = value_R >= s_max
        logarithm_R = (np.log(value_R) - np.log(s_max)) / np.log(base_of_log)
        value_R = np.where(is_over_R, logarithm_R + s_max, value_R)
        wanted_FD = (u_FR * value_R) @ v_RD
        assert relative(to_dense(delta), wanted_FD) <= 1e-6
        n_restrained += is_over_R.sum()
        every_FD = np.asarray(restrained.overlay.delta[EDITED_WEIGHT][slot])
        assert relative(every_FD, wanted_FD) > 1e-3
    assert n_restrained > 0
    again = jaxedit.apply(model, pruned)
    np.testing.assert_array_equal(
        np.asarray(again.overlay.delta[EDITED_WEIGHT][0]), to_dense(pruned.deltas[0])
    )


def test_prune_at_the_end_needs_edits(model):
    with pytest.raises(ValueError, match="has no edits that could be restrained"):
        jaxedit.prune(model)
    with pytest.raises(ValueError, match=r"prune_log_base=0\.5: expected a number"):
        jaxedit.prune(model, 0.5)


def test_prune_leaves_small_changes_alone(model, plain):
    found = edit_with(model, REQUESTS[0], prune_log_base=math.e)
    assert plain.norm < np.linalg.norm(base(model), 2)
    np.testing.assert_allclose(
        to_dense(found.deltas[0]), to_dense(plain.deltas[0]), atol=1e-6 * plain.norm
    )


def test_dense_editors_say_so():
    assert not rome().dense
    assert not rome(max_norm_ratio=0.1).dense
    assert rome(rect_keep=0.4).dense
    assert rome(prune_log_base=2.0).dense
    assert jaxedit.make_editor("ft", layers=[2]).dense


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(max_norm_ratio=0.0), "max_norm_ratio=0.0: expected a positive number"),
        (dict(rect_keep=1.2), "rect_keep=1.2: expected a share"),
        (dict(prune_log_base=1.0), "prune_log_base=1.0: expected a number over 1"),
        (dict(rect_keep="most"), "rome has rect_keep='most'; expected float or nothing"),
    ],
)
def test_numbers_that_cannot_be_meant(change, message):
    with pytest.raises(ValueError, match=message):
        rome(**change)
