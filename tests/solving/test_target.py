"""The values to write: requests do not influence each other, whatever company they are optimised in; NAS."""

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import matrix
from jaxedit.solving import target
from jaxedit.solving.target import TargetHyper, optimise

TEMPLATES = ("{}", "I am a little. {}")
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "the English language"),
    jaxedit.Request("{}", "Honolulu", "BBC"),
    jaxedit.Request("The very long question about where in the world {} may have been born is answered by", "Bob", "Iran"),
    jaxedit.Request("{} plays", "Ann", "piano"),
]
HYPER = TargetHyper(v_num_grad_steps=6)


def test_requests_do_not_influence_each_other(golden, monkeypatch):
    model = golden("gpt2")
    alone = [optimise(model, [request], TEMPLATES, 3, HYPER, residual=True) for request in REQUESTS]
    monkeypatch.setattr(target, "REQUESTS_AT_ONCE", 2)  # three parts of other lengths, the last one filled up
    together = optimise(model, REQUESTS, TEMPLATES, 3, HYPER, residual=True)
    for name in target.Targets._fields:
        expected = np.concatenate([getattr(found, name) for found in alone])
        np.testing.assert_allclose(getattr(together, name), expected, rtol=2e-4, atol=2e-5, err_msg=name)


def test_norm_anchor_gives_values_the_norm_they_had_in_the_unedited_model(golden):
    model = golden("llama")
    plain = jaxedit.make_editor("rome", layer=3, v_num_grad_steps=6, context_templates=TEMPLATES)
    first, _, _ = plain.edit(model, REQUESTS[:1], plain.init(model, None))
    once = jaxedit.apply(model, first)
    unedited = optimise(model, REQUESTS[1:2], TEMPLATES, 3, HYPER, residual=False)
    free = optimise(once, REQUESTS[1:2], TEMPLATES, 3, HYPER, residual=False)
    anchored = optimise(once, REQUESTS[1:2], TEMPLATES, 3, TargetHyper(v_num_grad_steps=6, norm_anchor=True), residual=False)
    wanted, found = free.init_ND + free.delta_ND, anchored.init_ND + anchored.delta_ND
    assert np.linalg.norm(wanted) > 1.01 * np.linalg.norm(unedited.init_ND)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(unedited.init_ND), rel=1e-5)
    np.testing.assert_allclose(found / np.linalg.norm(found), wanted / np.linalg.norm(wanted), atol=1e-6)


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_norm_anchor_reaches_the_edit(golden, name):
    model = golden("llama")
    hyper = dict(layer=3) if name == "rome" else dict(layers=(2, 3), mom2_adjustment=False, mom2_update_weight=1.0)
    templates = TEMPLATES if name == "rome" else (TEMPLATES,)
    edits = []
    for anchor in (False, True):
        editor = jaxedit.make_editor(name, v_num_grad_steps=6, context_templates=templates, norm_anchor=anchor, **hyper)
        edits.append(editor.edit(model, REQUESTS[:1], editor.init(model, None))[0])
    assert not np.allclose(matrix(edits[0].deltas[-1]), matrix(edits[1].deltas[-1]), rtol=1e-3)
