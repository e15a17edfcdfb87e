"""MEND's network and its update against the closed expression and a network of torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from mend_examples import (
    LAYERS,
    REQUESTS,
    in_hf_names,
    layout_of,
    names_of,
    reference_factors,
    torch_mend,
)
from one_batch import make_target_rows
from reference.distance import relative
from transformers import GPT2Config

import jaxedit
from jaxedit.mend.hypernetwork import add_to_moments, init_hypernetwork
from jaxedit.mend.network import Switches, clamp_min_0, make_layout
from jaxedit.mend.network_file import write_network
from jaxedit.mend.places import mlp_places
from jaxedit.models.output_gradients import inputs_and_output_gradients

FAMILIES = ("gpt2", "gptj", "llama")
EDIT_LR = 1e-4


def untrained(model, layout):
    """Make the identity, whose moments have seen each request by itself."""
    made = init_hypernetwork(layout, EDIT_LR, seed=0)
    rows = make_target_rows(model, REQUESTS)
    rows = rows._replace(weight_BQ=rows.weight_BQ * len(REQUESTS))
    _, factors = inputs_and_output_gradients(model, layout.places, rows)
    for half in (slice(0, 2), slice(2, None)):  # two batches of moments, which are merged
        made = jax.jit(add_to_moments)(made, jax.tree.map(lambda a, half=half: a[half], factors))
    return made


def edits_with(model, network, **hyper):
    """Return the edit of each request by itself."""
    editor = jaxedit.make_editor("mend", layers=LAYERS, network=str(network), **hyper)
    assert editor.edit_each
    return [edit for edit, _ in editor.edit_each(model, REQUESTS, editor.init(model, None))]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_identity_network_edits_with_normalised_gradients(golden, shared, family, tmp_path):
    """alpha lr_scale sum_t d~ x~^T in float64; mean and deviation over the tokens of a shape."""
    model, directory = golden(family), shared / "golden" / family
    layout = layout_of(model)
    write_network(tmp_path / "network.safetensors", untrained(model, layout), model, {})
    edits = edits_with(model, tmp_path / "network.safetensors", lr_scale=3.0)

    seen = [reference_factors(model, directory, request) for request in REQUESTS]
    names = names_of(model)
    assert set(in_hf_names(edits[0])) == set(names)
    for own, edit in zip(seen, edits, strict=True):
        for name, found in in_hf_names(edit).items():
            same = [other for other in names if own[other][0].shape[1] == own[name][0].shape[1]]
            normalised = []
            for k, factor in enumerate(own[name]):
                tokens = np.concatenate([of[other][k] for of in seen for other in same])
                deviation = tokens.std(axis=0, ddof=1) + 1e-7
                normalised.append((factor.numpy() - tokens.mean(axis=0)) / deviation)
            expected = 3.0 * EDIT_LR * normalised[1].T @ normalised[0]
            assert relative(found, expected) <= 1e-5, name


SWITCHES = {
    "published": dict(n_hidden=1),
    "three blocks": dict(n_hidden=2),
    "apart": dict(combine=False),
    "not shared": dict(shared=False),
    "one-sided": dict(combine=False, one_sided=True),
    "x only": dict(combine=False, x_only=True, shared=False),
    "delta only": dict(combine=False, delta_only=True),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("llama", name) for name in SWITCHES), ("gpt2", "published"), ("gpt2", "not shared")],
)
def test_an_archive_edits_as_its_network_in_torch(golden, shared, family, name, tmp_path):
    """An archive as MEND's code writes it, with the model's configuration as an object."""
    model, directory = golden(family), shared / "golden" / family
    theirs = torch_mend(model, layout_of(model, **SWITCHES[name])).double()
    seen = [reference_factors(model, directory, request) for request in REQUESTS]
    with torch.no_grad():
        for factors in seen:
            theirs.see(factors)
        expected = theirs.updates(seen[1])

    state = {name: tensor.float() for name, tensor in theirs.state_dict().items()}
    prefix = "gtn." if family == "gpt2" else "mend."  # the ROME and MEMIT repositories' name
    state = {name.replace("mend.", prefix, 1): tensor for name, tensor in state.items()}
    archive = {"model": {**state, "model_config": GPT2Config()}, "opt": {}, "step": 5}
    torch.save(archive, tmp_path / "archive.pt")
    found = in_hf_names(edits_with(model, tmp_path / "archive.pt")[1])
    for name, change in expected.items():
        assert relative(found[name], change.numpy()) <= 1e-5, name


def test_an_archive_of_another_model_is_refused(golden, tmp_path):
    theirs = torch_mend(golden("gpt2"), layout_of(golden("gpt2")))
    path = tmp_path / "archive.pt"
    torch.save({"model": theirs.state_dict()}, path)
    editor = jaxedit.make_editor("mend", layers=[2, 3], network=str(path))
    with pytest.raises(ValueError, match=r"archive\.pt is not the archive of a network for these"):
        editor.init(golden("llama"), None)
    torch.save({"model": {"u": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="no archive of a trained MEND network"):
        editor.init(golden("gpt2"), None)


class Harmful:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return print, ("run",)


def test_an_archive_runs_no_code(golden, tmp_path, capsys):
    path = tmp_path / "archive.pt"
    torch.save({"model": {"model_config": Harmful()}}, path)
    editor = jaxedit.make_editor("mend", layers=[2, 3], network=str(path))
    with pytest.raises(ValueError, match="cannot be read as a torch file of weights only"):
        editor.init(golden("gpt2"), None)
    assert "run" not in capsys.readouterr().out


def test_the_clamp_has_the_gradient_one_at_zero():
    x = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(clamp_min_0))(x), [0, 1, 1])
    np.testing.assert_array_equal(clamp_min_0(jnp.asarray(x)), [0, 0, 2])


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        (dict(one_sided=True), "combine, one_sided exclude each other"),
        (dict(combine=False, x_only=True, delta_only=True), "x_only, delta_only exclude"),
        (dict(rank=0), "expected a rank of at least 1"),
    ],
)
def test_switches_that_cannot_be_meant_are_refused(switches, said):
    with pytest.raises(ValueError, match=said):
        make_layout(Switches(**switches), (("mlp/w_up", 0),), {"mlp/w_up": (2, 3)})


def test_a_network_of_other_weights_is_refused(golden, tmp_path):
    model, path = golden("llama"), tmp_path / "network.safetensors"
    made = init_hypernetwork(layout_of(model), EDIT_LR, seed=0)
    write_network(path, made, model, {})
    with pytest.raises(ValueError, match=r"of layers \[2, 3\]; asked for are layers \[3\]"):
        jaxedit.make_editor("mend", layers=[3], network=str(path)).init(model, None)
    editor = jaxedit.make_editor("mend", layers=LAYERS, network=str(path))
    base = model.base | {"mlp/w_up": model.base["mlp/w_up"] + 1}
    with pytest.raises(ValueError, match="was trained on weights with the fingerprint"):
        editor.init(dataclasses.replace(model, base=base), None)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="cannot be read as a network of MEND"):
        editor.init(model, None)
    with pytest.raises(ValueError, match="mend edits with a trained network: give network=FILE"):
        jaxedit.make_editor("mend", layers=LAYERS).init(model, None)


def test_weights_are_in_the_released_order(golden):
    """It decides whose the scales, shifts and step sizes of an archive are."""
    assert mlp_places(golden("gpt2"), [2]) == (("mlp/w_down", 2), ("mlp/w_up", 2))
    assert mlp_places(golden("gptj"), [2]) == (("mlp/w_up", 2), ("mlp/w_down", 2))
    weights = ("mlp/w_gate", "mlp/w_up", "mlp/w_down")
    assert mlp_places(golden("llama"), [1, 2]) == tuple((w, l) for l in (1, 2) for w in weights)
