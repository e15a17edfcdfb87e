"""Batches of values on accelerators, and values of bfloat16 models."""

import numpy as np
import pytest

import jaxedit
from jaxedit.solving import value
from jaxedit.solving.hyper import TargetHyper
from jaxedit.solving.site import Site
from jaxedit.solving.value import optimise_values

TEMPLATES = ("{}", "I am a little. {}")
HYPER = TargetHyper(v_num_grad_steps=4)
REQUESTS = [
    jaxedit.Request("{} is", "Ann", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "the English language"),
    jaxedit.Request("{} is", "Bob", "Rome"),
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("{} is located in the city of", "The Great Wall", "Rome"),
]


def test_accelerators_optimise_more_requests_together(golden, monkeypatch):
    model, shape = golden("gpt2"), value.PaddedShape(prefix=8, suffix=8, n_read=2)
    on_cpu = value.requests_per_batch(model, shape, n_templates=2, layer=3)
    monkeypatch.setattr(value, "platform", lambda mesh: "gpu")
    assert value.requests_per_batch(model, shape, n_templates=2, layer=3) == 8 * on_cpu
    monkeypatch.setattr(value, "ACCELERATOR_HELD_BYTES", 1)
    assert value.requests_per_batch(model, shape, n_templates=2, layer=3) == 1


def test_requests_together_take_half_of_a_devices_memory_at_most(golden, monkeypatch):
    """As plans count it: two and a half times the products, outputs of attention and of MLPs."""
    model, shape = golden("gpt2"), value.PaddedShape(prefix=8, suffix=8, n_read=2)
    config, n_templates, layer = model.config, 2, 3
    floats = 2 * config.D + config.H * (config.N + 2 * config.K) + config.F
    kept_bytes = 4 * floats * (n_templates + 1) * shape.suffix * (config.L - 1 - layer)
    monkeypatch.setattr(value, "platform", lambda mesh: "tpu")
    for n, limit in ((5, 5.01 * 5 * kept_bytes), (4, 4.99 * 5 * kept_bytes)):
        monkeypatch.setattr(value, "device_bytes_limit", lambda mesh, limit=limit: limit)
        assert value.requests_per_batch(model, shape, n_templates, layer) == n


def test_many_batches_are_of_one_suffix_each_and_give_the_same_values(golden, monkeypatch):
    model = golden("gpt2")
    expected = optimise_values(model, REQUESTS, TEMPLATES, 3, HYPER, Site.MLP)
    optimise, shapes = value._optimise_chunk, []

    def note_shape(model, tokenised, shape, *more):
        shapes.append({value.common_shape([request]).suffix for request in tokenised})
        return optimise(model, tokenised, shape, *more)

    monkeypatch.setattr(value, "_optimise_chunk", note_shape)
    monkeypatch.setattr(value, "platform", lambda mesh: "gpu")
    monkeypatch.setattr(value, "ACCELERATOR_HELD_BYTES", 1)
    found = optimise_values(model, REQUESTS, TEMPLATES, 3, HYPER, Site.MLP)
    assert all(len(suffixes) == 1 for suffixes in shapes)
    for name in value.OptimisedValues._fields:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=2e-4, atol=2e-5, err_msg=name
        )


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_values_of_a_bfloat16_model_are_near_those_of_float32(shared, family):
    """u and v of ROME and the perplexity; v by Adam, whose first steps follow gradients' signs."""
    path = str(shared / "golden" / family)
    editor = jaxedit.make_editor(
        "rome", layer=3, v_num_grad_steps=4, context_templates=TEMPLATES, mom2_adjustment=False
    )
    edits, scores = [], []
    for dtype in ("float32", "bfloat16"):
        model = jaxedit.load(path, dtype=dtype)
        edit, _, _ = editor.edit(model, REQUESTS[3:4], editor.init(model, None))
        edits.append(edit.deltas[0])
        scores.append(jaxedit.perplexity(jaxedit.apply(model, edit), ["Ann lives in Rome."]).mean)
    for exact, found in zip(edits[0][2:], edits[1][2:], strict=True):
        assert np.linalg.norm(found - exact) < 0.15 * np.linalg.norm(exact)
    assert scores[1] == pytest.approx(scores[0], rel=0.02)
