"""Keys added to an update's constraints: against the dense formula in float64."""

import dataclasses

import numpy as np
import pytest
from reference.distance import relative

import jaxedit
from jaxedit.models.model import Model
from jaxedit.solving import closed_form
from jaxedit.solving.key_constraints import pack_constraints
from jaxedit.solving.keys import compute_keys
from jaxedit.solving.packed_prompts import pack_prompts

REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome", "Paris")
OTHERS = ("The Louvre", "Bob")
LAYER, WEIGHT = 3, 50.0
SETTINGS = dict(
    layers=(LAYER,),
    context_templates=(("{}",), ("So. {}", "They say that {}")),
    v_num_grad_steps=4,
    mom2_update_weight=WEIGHT,
    fact_token="last",
)


@pytest.fixture(scope="module")
def model(golden) -> Model:
    return golden("llama")


@pytest.fixture(scope="module")
def stats(golden_expected):
    tensors = golden_expected("llama")[1]
    n_tokens = int(tensors["mom2/n_tokens"])
    return jaxedit.Stats.from_moments({LAYER: tensors[f"mom2/{LAYER}"]}, n_tokens)


def edited(model, stats, method="memit", **more):
    editor = jaxedit.make_editor(method, **SETTINGS, **more)
    edit, state, _ = editor.edit(model, [REQUEST], editor.init(model, stats))
    return np.asarray(next(iter(edit.dense().values())), float).T, edit, state


def key_of(model, request, groups=(("{}",),)):
    packed = pack_prompts(model, [request], groups, "group_means", "last")
    return compute_keys(model, packed, LAYER)[0][0].astype(float)


@pytest.fixture(scope="module")
def keys(model):
    """Of the request in its templates, of its bare prompt, and of the others' prompts."""
    others = [dataclasses.replace(REQUEST, subject=subject) for subject in OTHERS]
    return (
        key_of(model, REQUEST, SETTINGS["context_templates"]),
        key_of(model, REQUEST),
        [key_of(model, other) for other in others],
    )


@pytest.fixture(scope="module")
def m_FF(model, stats):
    return WEIGHT * np.asarray(stats.of(model, LAYER), float)


@pytest.fixture(scope="module")
def residual_D(model, stats, keys, m_FF):
    """What is written, out of the update without added keys."""
    plain_FD, pooled_F = edited(model, stats)[0], keys[0]
    share = pooled_F @ np.linalg.solve(m_FF, pooled_F)
    return (share + 1) / share * (plain_FD.T @ pooled_F)


@pytest.mark.parametrize(
    "more",
    [
        dict(bare_key=True),
        dict(preserved_subjects=OTHERS),
        dict(bare_key=True, preserved_subjects=OTHERS),
    ],
)
def test_they_are_columns_of_k(model, stats, keys, m_FF, residual_D, more):
    """D = M^-1 K (K^T M^-1 K + I)^-1 R, with a row of R for each."""
    pooled_F, bare_F, others = keys
    columns, rows = [pooled_F], [residual_D]
    if more.get("bare_key"):
        columns, rows = [*columns, bare_F], [*rows, residual_D]
    if more.get("preserved_subjects"):
        columns += others
        rows += [np.zeros_like(residual_D)] * len(others)
    key_FR, target_RD = np.stack(columns, axis=1), np.stack(rows)
    solved_FR = np.linalg.solve(m_FF, key_FR)
    gram_RR = key_FR.T @ solved_FR + np.eye(len(rows))
    expected_FD = solved_FR @ np.linalg.solve(gram_RR, target_RD)
    found_FD, edit, _ = edited(model, stats, **more)
    assert relative(found_FD, expected_FD) < 1e-4
    assert edit.deltas[0].u_FR.shape[1] <= len(rows)


def test_other_subjects_keep_their_answer(model, stats, keys):
    plain_FD = edited(model, stats)[0]
    preserved_FD = edited(model, stats, preserved_subjects=OTHERS)[0]
    for key_F in keys[2]:
        before, after = (np.linalg.norm(each.T @ key_F) for each in (plain_FD, preserved_FD))
        assert after < 0.7 * before


def test_they_are_left_out_where_nothing_could_be_written(model, stats, monkeypatch):
    """Where another subject is as good as the fact's own."""
    plain_FD, _, _ = edited(model, stats)
    alone = jaxedit.make_editor("memit", **SETTINGS)
    missed = alone.edit(model, [REQUEST], alone.init(model, stats))[2]["z_miss"]
    same = dict(preserved_subjects=("the Eiffel Tower", "Eiffel Tower"))
    editor = jaxedit.make_editor("memit", **SETTINGS, **same)
    state = editor.init(model, stats)
    _, _, with_them = editor.edit(model, [REQUEST], state)
    assert with_them["n_preserved"] == 2
    assert with_them["z_miss"] > 1.5 * missed
    monkeypatch.setattr(closed_form, "MOST_MISSED", 1.2 * missed)
    edit, _, info = editor.edit(model, [REQUEST], state)
    assert info["n_preserved"] == 0
    np.testing.assert_array_equal(next(iter(edit.dense().values())).T, plain_FD)


def test_what_an_edit_writes_is_not_preserved(model):
    """Nor is a prompt preserved twice that two requests share."""
    other = dataclasses.replace(REQUEST, subject="The Louvre", target_new="London")
    found = pack_constraints(model, [REQUEST, other], "last", False, ("The Louvre", "Bob"))
    assert found.preserved.n_requests == 1
    assert pack_constraints(model, [other], "last", False, ("The Louvre",)).preserved is None


def test_the_history_has_them(model, stats):
    """Later edits keep what was written and what was preserved."""
    found = edited(
        model, stats, "memit-sequential", bare_key=True, preserved_subjects=("Bob", "The Louvre")
    )
    assert found[1].memory[f"keys/{LAYER}"].shape[0] == 4


def test_facts_written_at_their_subject_get_no_other_subjects(model, stats):
    editor = {
        more: jaxedit.make_editor(
            "memit", **SETTINGS | dict(fact_token="subject_last"), preserved_subjects=more
        )
        for more in ((), OTHERS)
    }
    plain, preserved = (
        each.edit(model, [REQUEST], each.init(model, stats))[0].dense() for each in editor.values()
    )
    for name, change in plain.items():
        np.testing.assert_array_equal(change, preserved[name])


def test_methods_without_them_say_so():
    with pytest.raises(ValueError, match="rome has no hyper-parameter 'bare_key'"):
        jaxedit.make_editor("rome", bare_key=True)
