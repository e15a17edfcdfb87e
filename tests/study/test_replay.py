"""A study's model again: the one it had, or one with some of its edits."""

import numpy as np
import pytest
from rewritten import rewrite_run

import jaxedit
from jaxedit.edits.edit import read_edit
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study
from jaxedit.study.replay import edited_model

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
    for subject in ("BP", "Bob", "Ann")
]
NOT_POSSIBLE = {"prompt": "{} lives in", "subject": "Bob and " * 200 + "Ann", "target_new": "Paris"}


@pytest.fixture(scope="module")
def studied(study_config, tmp_path_factory):
    """A function: (method, **keys) -> the folder of a study of three facts and one that cannot be
    edited.
    """
    folder = tmp_path_factory.mktemp("edited")
    hypers = {
        "rome": dict(layer=3, v_num_grad_steps=3, context_templates=("{}", "I am. {}")),
        "ft": dict(layers=(3,), num_steps=2),
    }

    def run(method, **keys):
        facts, texts = [*FACTS, NOT_POSSIBLE], ["The Eiffel Tower is in Paris."]
        guard = dict(action="keep")
        config = study_config(method, facts, texts, hypers[method], guard=guard, **keys)
        return run_study(config, folder / f"{method}-{len(list(folder.iterdir()))}")

    return run


def delta(model) -> np.ndarray:
    return np.asarray(model.overlay.delta["mlp/w_down"][int(model.overlay.slot["mlp/w_down"][3])])


def test_kept_edits_or_some(studied, golden):
    folder = studied("rome")
    edits = [read_edit(step.arrays) for step in read_journal(folder).steps[1:4]]

    def by_hand(chosen):
        model = golden("gpt2")
        for edit in chosen:
            model = jaxedit.apply(model, edit)
        return delta(model)

    np.testing.assert_array_equal(delta(edited_model(folder)), by_hand(edits))
    np.testing.assert_array_equal(delta(edited_model(folder, after_step=2)), by_hand(edits[:2]))
    np.testing.assert_array_equal(
        delta(edited_model(folder, run_steps=[3, 1])), by_hand([edits[2], edits[0]])
    )
    for arguments, message in (
        (dict(run_steps=[7]), "has no edit 7; it has 1 to 4"),
        (dict(after_step=0), "has no edit 0"),
        (dict(run_steps=[4]), "edit 4 of .* was not made"),
    ):
        with pytest.raises(ValueError, match=message):
            edited_model(folder, **arguments)
    rewrite_run(folder, model_fingerprint="0" * 16)
    with pytest.raises(ValueError, match="its weights are others now"):
        edited_model(folder)


def test_snapshots(studied):
    every, whole = studied("ft"), studied("ft", journal_dense_every=2)
    np.testing.assert_array_equal(delta(edited_model(whole)), delta(edited_model(every)))
    np.testing.assert_array_equal(
        delta(edited_model(whole, after_step=2)), delta(edited_model(every, after_step=2))
    )
    with pytest.raises(ValueError, match="holds the weights after every 2 edits only, not after 1"):
        edited_model(whole, after_step=1)
    with pytest.raises(ValueError, match="after every 2 edits, and no edit by itself"):
        edited_model(whole, run_steps=[1])


def test_single_edits_are_each_by_themselves(studied):
    folder = studied("rome", mode="single")
    assert not edited_model(folder).metadata.history
    assert len(edited_model(folder, run_steps=[2]).metadata.history) == 1
