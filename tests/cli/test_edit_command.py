"""`jaxedit edit`: its numbers are the library's for the edit that it saves."""

import numpy as np
import pytest
from command_examples import EDIT, TEXTS, result

import jaxedit
from jaxedit.edits.edit import read_edit, to_dense
from jaxedit.edits.predicted_change import predict_edit
from jaxedit.metrics.perplexity import prepare


@pytest.fixture(scope="module")
def edited(run):
    """The edit as JSON, saved."""
    return run(*EDIT, "--prediction_draws=3", "--save=saved/edit.safetensors", "--json")


def test_edit_as_json_and_saved(edited, folder, tiny):
    """The numbers are the library's for the edit that was saved, which is of the layer and steps
    asked for.
    """
    found, saved = result(edited), read_edit(folder / "saved" / "edit.safetensors")
    assert [delta[:2] for delta in saved.deltas] == [("mlp/w_down", 3)]
    assert found["request"] == "Bob lives in → Munich"
    assert (found["method"], found["model"]) == ("rome", "tiny")
    assert found["optimisation"]["n_steps"] == 4
    assert found["optimisation"]["v_norm"] == pytest.approx(
        np.linalg.norm(to_dense(saved.deltas[0])), rel=1e-5
    )
    for when, model in (("unedited", tiny), ("edited", jaxedit.apply(tiny, saved))):
        score = jaxedit.perplexity(model, TEXTS)
        assert (found[when]["perplexity"], found[when]["pooled"]) == (score.mean, score.pooled)
        assert found[when]["continuation"] == jaxedit.generate(
            model, ["Bob lives in"], max_new_tokens=12
        )[0].removeprefix("Bob lives in")
    assert found["edited"]["probability_new"] > found["unedited"]["probability_new"]
    change = predict_edit(tiny, prepare(tiny, TEXTS), saved, 3)
    assert found["predicted_change"] == pytest.approx(
        {"mean_nats": change.mean_nats(), "stderr_nats": change.stderr_nats()}, rel=1e-3
    )
    scores = [jaxedit.perplexity(model, TEXTS) for model in (tiny, jaxedit.apply(tiny, saved))]
    measured = scores[1].paired_difference(scores[0])[0]
    assert found["delta_nll_nats"] == pytest.approx(measured, rel=1e-3, abs=1e-6)


def test_edit_as_a_table(edited, run):
    done = run(*EDIT, "--prediction_draws=2")
    assert done.returncode == 0, done.stderr
    assert "Change of the loss, nats a token: predicted " in done.stdout
    found = result(edited)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert "Bob lives in → Munich with rome in tiny" in done.stdout
    assert ["unedited", "edited"] in lines
    assert [
        "perplexity",
        *(f"{found[when]['perplexity']:,.0f}" for when in ("unedited", "edited")),
    ] in lines
    assert [
        "P(new)",
        *(f"{found[when]['probability_new']:.3g}" for when in ("unedited", "edited")),
    ] in lines
    assert ["accuracy", "0", "%", "0", "%"] in lines
