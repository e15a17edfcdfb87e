"""NAS against its authors' expressions in NumPy, float64: what is scaled and what is skipped."""

import dataclasses

import numpy as np
import pytest
from reference.distance import relative
from reference.multi_layer import (
    GROUPS,
    LAYERS,
    REQUESTS,
    TEMPLATES,
    golden_moments,
    optimised_z,
    packed,
    steps,
)

import jaxedit
from jaxedit.edits.edit import to_dense
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.norm_anchor import SKIP_LIMITS, find_values, measure_value_norm
from jaxedit.solving.packed_prompts import pack_prompts
from jaxedit.solving.site import Site
from jaxedit.solving.value import optimise_values
from jaxedit.stats.value_norm import ValueNorm

LAMBDA = 0.5
VALUES = dict(v_num_grad_steps=3, clamp_norm_factor=4.0)
MEMIT = dict(layers=LAYERS, context_templates=GROUPS, mom2_update_weight=LAMBDA) | VALUES
ROME = dict(layer=LAYERS[-1], context_templates=TEMPLATES, mom2_adjustment=False) | VALUES


def scaled(v0_ID: np.ndarray, delta_ID: np.ndarray, mean: float, limit: float):
    """Evaluate v* as the authors do, fact by fact; return it and which facts are skipped."""
    found, skipped = [], []
    for v0_D, delta_D in zip(v0_ID, delta_ID, strict=True):
        v_star_D = delta_D + v0_D
        skipped.append(np.linalg.norm(v_star_D) > limit * mean)
        scaled_D = v_star_D * (mean / np.linalg.norm(v_star_D))
        found.append(v0_D if skipped[-1] else scaled_D)
    return np.array(found), skipped


def held(model, requests, site: Site) -> np.ndarray:
    """Compute what the bare prompts hold after the last layer, or its MLP puts out."""
    return np.float64(compute_values(model, packed(model, requests), LAYERS[-1], site))


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_values_are_the_authors(golden, family):
    """Of three facts, whose values have different lengths, the longest is skipped."""
    model, hyper = golden(family), jaxedit.make_editor("memit", **MEMIT).hyper
    h_ID, v0_ID = (held(model, REQUESTS, site) for site in (Site.RESIDUAL, Site.MLP))
    arguments = (hyper, model, REQUESTS, TEMPLATES, LAYERS[-1], Site.RESIDUAL)
    free = find_values(*arguments, None)
    assert free.info == {}
    norm_I = np.linalg.norm(v0_ID + free.values.delta_ID, axis=1)
    mean = float(np.sort(norm_I)[-2:].mean() / 2)
    v_star_ID, skipped = scaled(v0_ID, free.values.delta_ID, mean, 2.0)
    found = find_values(*arguments, mean)
    assert sum(skipped) == found.info["n_skipped_facts"] == 1
    z_ID = found.values.init_ID + found.values.delta_ID
    assert relative(z_ID, (h_ID - v0_ID) + v_star_ID) < 1e-5


@pytest.mark.parametrize("family", ["llama"])
def test_memit_writes_the_authors_values(shared, golden, family):
    """One fact is skipped, since its value is too long; the others get the mean norm."""
    model, moments = golden(family), golden_moments(shared, family)
    stats = jaxedit.Stats.from_moments(moments, 1000)
    free = jaxedit.make_editor("memit", **MEMIT)
    h_ID, v0_ID = (held(model, REQUESTS, site) for site in (Site.RESIDUAL, Site.MLP))
    delta_ID = optimised_z(model, REQUESTS, free.hyper) - h_ID

    # A mean that exactly the longest value is over twice of.
    norm_I = np.linalg.norm(v0_ID + delta_ID, axis=1)
    mean = float(np.sort(norm_I)[-2:].mean() / SKIP_LIMITS[Site.RESIDUAL])
    v_star_ID, skipped = scaled(v0_ID, delta_ID, mean, 2.0)
    assert sum(skipped) == 1

    hyper = MEMIT | dict(norm_anchor_scaling=True, norm_anchor_value=mean)
    editor = jaxedit.make_editor("memit", **hyper)
    edit, _, info = editor.edit(model, REQUESTS, editor.init(model, stats))
    assert info["n_skipped_facts"] == 1
    z_ID = (h_ID - v0_ID) + v_star_ID
    assert relative(z_ID, h_ID + delta_ID) > 1e-2
    for step in steps(model, REQUESTS, edit.deltas, z_ID):
        system_FF = LAMBDA * moments[step.layer] + step.key_FI @ step.key_FI.T
        wanted_FD = np.linalg.solve(system_FF, step.key_FI @ step.residual_ID)
        assert relative(step.delta_FD, wanted_FD) < 1e-4, step.layer


@pytest.mark.parametrize("is_skipped", [False, True])
def test_rome_writes_the_authors_value_or_nothing(golden, is_skipped):
    model = golden("llama")
    v0_D = held(model, REQUESTS[:1], Site.MLP)[0]
    free = jaxedit.make_editor("rome", **ROME)
    plain = free.edit(model, REQUESTS[:1], free.init(model, None))[0]
    keys = compute_keys(model, packed(model, REQUESTS[:1]), LAYERS[-1])[1]
    delta_D = np.float64(keys[0]) @ np.float64(to_dense(plain.deltas[0]))
    norm = float(np.linalg.norm(v0_D + delta_D))
    mean = norm / (5.1 if is_skipped else 4.9)
    hyper = ROME | dict(norm_anchor_scaling=True, norm_anchor_value=mean)
    editor = jaxedit.make_editor("rome", **hyper)
    edit, _, info = editor.edit(model, REQUESTS[:1], editor.init(model, None))
    assert info["n_skipped_facts"] == int(is_skipped)
    written_D = np.float64(keys[0]) @ np.float64(to_dense(edit.deltas[0]))
    if is_skipped:
        np.testing.assert_array_equal(to_dense(edit.deltas[0]), 0)
    else:
        assert relative(v0_D + written_D, mean * (v0_D + delta_D) / norm) < 1e-4


def test_measured_norm_is_of_values_at_bare_prompts_of_the_unedited_model(golden):
    model, layer = golden("llama"), LAYERS[-1]
    hyper = jaxedit.make_editor("memit", **MEMIT).hyper
    norms = []
    for request in REQUESTS[:2]:
        found = optimise_values(model, [request], ("{}",), layer, hyper, Site.RESIDUAL)
        v0_ID = compute_values(
            model, pack_prompts(model, [request], (("{}",),), "mean"), layer, Site.MLP
        )
        norms.append(np.linalg.norm(v0_ID + found.delta_ID))
    measured = measure_value_norm(model, REQUESTS[:2], layer, hyper)
    assert measured.mean == pytest.approx(np.mean(norms), rel=1e-5)
    assert measured.stderr == pytest.approx(np.std(norms, ddof=1) / np.sqrt(2), rel=1e-4)
    rome = jaxedit.make_editor("rome", **ROME)
    edit, _, _ = rome.edit(model, REQUESTS[:1], rome.init(model, None))
    again = measure_value_norm(jaxedit.apply(model, edit), REQUESTS[:2], layer, hyper)
    assert again.mean == pytest.approx(measured.mean, rel=1e-5)


@pytest.mark.parametrize(("n", "n_dropped"), [(2, 0), (19, 0), (20, 1), (100, 5), (1000, 50)])
def test_the_largest_twentieth_is_left_out(n, n_dropped):
    norm_I = np.random.default_rng(n).permutation(np.arange(1, n + 1) ** 2)
    found = ValueNorm.from_norms(norm_I)
    kept = np.arange(1, n + 1 - n_dropped) ** 2
    assert found.mean == pytest.approx(kept.mean())
    assert found.stderr == pytest.approx(kept.std(ddof=1) / np.sqrt(len(kept)))
    assert (found.n_requests, found.n_dropped) == (n, n_dropped)


def test_one_fact_has_no_mean():
    with pytest.raises(ValueError, match="needs two facts or more, got 1"):
        ValueNorm.from_norms(np.ones(1))


def test_the_norm_comes_from_the_statistics(golden, tmp_path):
    """Where no number is given, from a file that keeps it with its digest."""
    model = golden("llama")
    moments = {layer: np.eye(model.config.F, dtype=np.float32) for layer in LAYERS}
    stats = jaxedit.Stats.from_moments(moments, 1000, {"fingerprint": model.fingerprint})
    editor = jaxedit.make_editor("nse", layers=LAYERS, norm_anchor_scaling=True)
    with pytest.raises(ValueError, match="mean norm of values at layer 3: give norm_anchor_value="):
        editor.init(model, stats)
    norms = {LAYERS[-1]: ValueNorm(1.25, 0.1, 100, 5)}
    measured = dataclasses.replace(stats, value_norms=norms)
    assert measured.digest != stats.digest
    path = tmp_path / "stats.safetensors"
    measured.save(path)
    assert jaxedit.Stats.load(path).value_norms == norms
    assert editor.init(model, jaxedit.Stats.load(path)).anchor_norm == 1.25
    given = jaxedit.make_editor(
        "nse", layers=LAYERS, norm_anchor_scaling=True, norm_anchor_value=0.5
    )
    assert given.init(model, measured).anchor_norm == 0.5
    others = dataclasses.replace(measured, made_from={"fingerprint": "0" * 16})
    with pytest.raises(ValueError, match="made with other weights"):
        editor.init(model, others)

    # Another number in the file is found.
    content = path.read_bytes()
    assert content.count(b"1.25") == 1
    path.write_bytes(content.replace(b"1.25", b"1.75"))
    with pytest.raises(ValueError, match="is not as it was written"):
        jaxedit.Stats.load(path)
    path.write_bytes(content.replace(b"1.25", b"null"))
    with pytest.raises(ValueError, match=r"stats\.safetensors: expected layers with mean, stderr"):
        jaxedit.Stats.load(path)


@pytest.mark.parametrize("name", ["rome", "memit"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(norm_anchor_value=1.0), "is for norm_anchor_scaling=True"),
        (dict(norm_anchor_scaling=True, keep_unedited_norm=True), "exclude each other"),
    ],
)
def test_switches_that_do_not_go_together(golden, name, change, message):
    editor = jaxedit.make_editor(name, layers=[2], **change)
    with pytest.raises(ValueError, match=message):
        editor.init(golden("llama"), None)
