"""MEMIT, EMMET and AlphaEdit against the reference implementations' golden vectors."""

import pytest
from reference.distance import relative

import jaxedit

FAMILIES = ("gpt2", "gptj", "llama", "qwen2", "gpt_neox")


def golden_stats(cases: dict, tensors: dict) -> jaxedit.Stats:
    moments = {layer: tensors[f"mom2/{layer}"] for layer in cases["memit"]["layers"]}
    return jaxedit.Stats.from_moments(moments, int(tensors["mom2/n_tokens"]))


def hyper_of(method: str, cases: dict, tensors: dict) -> dict:
    """Return the reference's hyper-parameters under their published names."""
    hyper = {**cases["memit"], "context_templates": cases["memit_context_templates"]}
    if method == "emmet":
        own = cases["emmet"]
        hyper |= {
            "mom2_update_weight": own["lam"],
            "emmet_lambda": own["ridge"],
            "update_norm_lambda": own["norm_lambda"],
        }
    if method == "alphaedit":
        del hyper["mom2_update_weight"]
        thresholds = {
            layer: float(tensors[f"alphaedit/threshold/{layer}"]) for layer in hyper["layers"]
        }
        hyper |= {"L2": cases["alphaedit"]["L2"], "nullspace_threshold": thresholds}
    return hyper


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["memit", "emmet", "alphaedit"])
def test_golden_updates(golden_edited, golden_expected, family, method):
    """All six requests as one batch over layers 2 to 4: delta W to 1e-4 relative, Frobenius."""
    cases, tensors = golden_expected(family)
    editor = jaxedit.make_editor(method, **hyper_of(method, cases, tensors))
    model = golden_edited(family)
    requests = [jaxedit.Request(**request) for request in cases["requests"]]
    edit, _, info = editor.edit(model, requests, editor.init(model, golden_stats(cases, tensors)))
    changes = edit.dense()
    assert len(changes) == 3
    for name, change in changes.items():
        wanted_FD = tensors[f"{method}/{name}"]
        assert relative(change if family == "gpt2" else change.T, wanted_FD) <= 1e-4, name
    assert info["solve_residual"] < 1e-4
