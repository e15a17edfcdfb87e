"""SPHERE against its authors' expression in torch: what it takes from an update, and when."""

import numpy as np
import pytest
import torch
from reference.distance import relative
from reference.multi_layer import GROUPS, LAYERS, REQUESTS, golden_moments, optimised_z, steps

import jaxedit
from jaxedit import Dense, LowRank
from jaxedit.edits.edit import EDITED_WEIGHT, to_dense
from jaxedit.solving.sphere import SphereHyper, principal_directions, project

FAMILIES = ("gpt2", "gptj", "llama")
SHARE, STRENGTH = 0.3, 0.7
MEMIT = dict(layers=LAYERS, context_templates=GROUPS, v_num_grad_steps=3, mom2_update_weight=0.5)
ALPHAEDIT = dict(
    layers=LAYERS,
    context_templates=GROUPS,
    v_num_grad_steps=3,
    nullspace_threshold=0.5,
    L2=1.0,
)


def projected(weight_FD, change_FD, strength: float = STRENGTH) -> np.ndarray:
    """Evaluate the authors' expression, whose matrices are out x in, in float64."""
    a_DF, b_DF = (torch.as_tensor(np.float64(array)).T for array in (weight_FD, change_FD))
    hat_DF = a_DF / (a_DF.norm(dim=1, keepdim=True) + 1e-8)
    c_FF = hat_DF.T @ hat_DF / hat_DF.size(0)
    value_F, vector_FF = torch.linalg.eigh(c_FF)
    running_F = torch.cumsum(value_F.flip(0), 0)
    r = int((running_F / value_F.sum() <= SHARE).sum()) + 1
    assert 1 < r < len(a_DF) // 2
    u_FM = vector_FF[:, -r:]
    p_FF = torch.eye(a_DF.size(1), dtype=torch.float64) - strength * (u_FM @ u_FM.T)
    return (b_DF @ p_FF.T).T.numpy()


def weights_of(model, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer's weight without edits and with them."""
    base_FD = np.float64(model.base[EDITED_WEIGHT][layer])
    slot = model.overlay.slot.get(EDITED_WEIGHT, {layer: -1})[layer]
    if slot < 0:
        return base_FD, base_FD
    return base_FD, base_FD + np.float64(model.overlay.delta[EDITED_WEIGHT][slot])


def edited(model, rng, size: float = 0.1):
    """Change layer 2 by a low-rank edit that turns its neurons."""
    F, D = model.base[EDITED_WEIGHT].shape[1:]
    u_FR = size * rng.standard_normal((F, 4)).astype(np.float32)
    v_RD = rng.standard_normal((4, D)).astype(np.float32)
    edit = jaxedit.Edit((LowRank(EDITED_WEIGHT, 2, u_FR, v_RD),))
    return jaxedit.apply(model, edit)


@pytest.mark.parametrize("on", ["edited", "unedited"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_projected_update_is_the_authors(golden, family, on):
    rng = np.random.default_rng(0)
    model = edited(golden(family), rng)
    F, D = model.base[EDITED_WEIGHT].shape[1:]
    u_FR, v_RD = rng.standard_normal((F, 3)), rng.standard_normal((3, D))
    delta = LowRank(EDITED_WEIGHT, 2, u_FR.astype(np.float32), v_RD.astype(np.float32))
    hyper = SphereHyper(sphere_share=SHARE, sphere_strength=STRENGTH, sphere_on=on)
    base_FD, now_FD = weights_of(model, 2)
    weight_FD, other_FD = (now_FD, base_FD) if on == "edited" else (base_FD, now_FD)
    wanted_FD = projected(weight_FD, to_dense(delta))
    assert relative(projected(other_FD, to_dense(delta)), wanted_FD) > 1e-2
    found = project(hyper, model, delta)
    assert isinstance(found, LowRank)
    np.testing.assert_array_equal(found.v_RD, delta.v_RD)
    assert relative(to_dense(found), wanted_FD) < 1e-5
    whole = project(hyper, model, Dense(EDITED_WEIGHT, 2, to_dense(delta)))
    assert isinstance(whole, Dense)
    assert relative(to_dense(whole), wanted_FD) < 1e-5


def test_all_directions_are_no_more_than_there_are_neurons():
    weight_FD = np.random.default_rng(1).standard_normal((12, 5))
    weight_FD[:, 4] = weight_FD[:, 3]  # two neurons are one: rank 4
    u_FM = principal_directions(weight_FD, 1.0)
    assert u_FM.shape == (12, 4)
    np.testing.assert_allclose(u_FM.T @ u_FM, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(u_FM @ (u_FM.T @ weight_FD), weight_FD, atol=1e-12)


@pytest.mark.parametrize("family", ["llama"])
def test_memit_is_projected_once_it_is_made(shared, golden, family):
    """As the authors do with it: the layers above do not make up for a projection."""
    model = edited(golden(family), np.random.default_rng(2))
    stats = jaxedit.Stats.from_moments(golden_moments(shared, family), 1000)
    made = []
    for more in ({}, dict(sphere_share=SHARE, sphere_strength=STRENGTH)):
        editor = jaxedit.make_editor("memit", **MEMIT, **more)
        assert not editor.dense
        made.append(editor.edit(model, REQUESTS[:2], editor.init(model, stats))[0])
    for free, bound in zip(made[0].deltas, made[1].deltas, strict=True):
        wanted_FD = projected(weights_of(model, free.layer)[1], to_dense(free))
        assert isinstance(bound, LowRank)
        assert relative(to_dense(bound), wanted_FD) < 1e-5


@pytest.mark.parametrize("family", ["llama"])
def test_alphaedit_is_projected_layer_by_layer(shared, golden, family):
    """As the authors do with it: the second layer writes what the first one's projection left."""
    model, moments = golden(family), golden_moments(shared, family)
    thresholds = {layer: float(np.median(np.linalg.eigvalsh(moments[layer]))) for layer in LAYERS}
    hyper = ALPHAEDIT | dict(nullspace_threshold=thresholds, sphere_share=SHARE)
    editor = jaxedit.make_editor("alphaedit", **hyper)
    z_ID = optimised_z(model, REQUESTS[:2], editor.hyper)
    state = editor.init(model, jaxedit.Stats.from_moments(moments, 1000))
    edit, _, _ = editor.edit(model, REQUESTS[:2], state)
    for step in steps(model, REQUESTS[:2], edit.deltas, z_ID):
        value_F, vector_FF = np.linalg.eigh(moments[step.layer])
        u_FM = vector_FF[:, value_F < thresholds[step.layer]]
        p_FF = u_FM @ u_FM.T
        system_FF = p_FF @ step.key_FI @ step.key_FI.T + np.eye(len(p_FF))
        free_FD = np.linalg.solve(system_FF, p_FF @ step.key_FI @ step.residual_ID)
        # alpha is 0.5 where it is not given
        wanted_FD = projected(weights_of(model, step.layer)[0], free_FD, 0.5)
        assert relative(step.delta_FD, wanted_FD) < 1e-4
        assert relative(free_FD, wanted_FD) > 1e-2


def test_rect_comes_before_and_the_cap_too(golden):
    model = golden("llama")
    request = [jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")]

    def edit(**more):
        hyper = dict(layer=2, v_num_grad_steps=4, context_templates=("{}",))
        editor = jaxedit.make_editor("rome", **hyper, **more)
        return editor.edit(model, request, editor.init(model, None))[0].deltas[0]

    sphere = dict(sphere_share=SHARE, sphere_strength=STRENGTH)
    weight_FD = weights_of(model, 2)[0]
    for others in (dict(rect_keep=0.4), dict(max_norm_ratio=1e-3)):
        wanted_FD = projected(weight_FD, to_dense(edit(**others)))
        assert relative(to_dense(edit(**others, **sphere)), wanted_FD) < 1e-5


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sphere_share=0.0), "sphere_share=0.0: expected a share"),
        (dict(sphere_strength=1.5), "sphere_strength=1.5: expected a share"),
        (dict(sphere_on="base"), "sphere_on='base': expected 'edited' or 'unedited'"),
    ],
)
def test_values_that_cannot_be_meant(method, change, message):
    with pytest.raises(ValueError, match=message):
        jaxedit.make_editor(method, layers=[2], **change)
