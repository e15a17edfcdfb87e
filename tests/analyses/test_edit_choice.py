"""The choice among several edits of one fact."""

import json

import numpy as np
import pytest

import jaxedit
from jaxedit.analyses.edit_choice import choose_edit
from jaxedit.edits.edit import to_dense
from jaxedit.edits.predicted_change import predict_change
from jaxedit.solving.harm_texts import read_parts
from jaxedit.study import alternatives

TEXTS = [
    "The Eiffel Tower is located in the city of Paris, and the Louvre is not far from it at all.",
    " Once upon a time there was a little girl who lived in the forest with her old grandmother.",
    " The NBA and MLB haven't sold lawmakers on a cut so far, but they will try again next year.",
]
REQUEST = jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome")
SETTINGS = dict(
    context_templates=("{}",), v_num_grad_steps=8, v_weight_decay=1e-3, clamp_norm_factor=8.0
)


@pytest.fixture
def always_said(monkeypatch):
    """Let every edit count as said but those at layer 1: models this small learn no answer."""

    def evaluate(model, requests):
        (edit,) = model.metadata.history
        return [{"efficacy_accuracy": float(edit.deltas[0].layer != 1)} for _ in requests]

    monkeypatch.setattr(alternatives, "evaluate_facts", evaluate)


def test_the_least_harmful_of_those_that_are_said(golden, always_said):
    model = golden("llama")
    alternatives = [{"method": "rome", "layer": layer, **SETTINGS} for layer in (1, 2, 3)]
    alternatives.append({"method": "rome", "layer": 2, **SETTINGS, "mom2_adjustment": True})
    choice = choose_edit(model, REQUEST, alternatives, TEXTS, n_tokens=192)
    first, second, third, failed = choice.alternatives
    assert (first.accuracy, second.accuracy, third.accuracy) == (0, 1, 1)
    assert failed.edit is None
    assert "needs second moments" in (failed.error or "")
    assert choice.chosen is min((second, third), key=lambda each: each.predicted_nats)
    assert choice.chosen is not None
    assert choice.chosen.editor["method"] == "rome"

    # Each is predicted as it would be by itself.
    probe = read_parts(model, TEXTS, 192, (("mlp/w_down", 1), ("mlp/w_down", 2), ("mlp/w_down", 3)))
    for each in (first, second, third):
        assert each.edit is not None
        assert each.predicted_nats == pytest.approx(predict_change(probe, each.edit).mean_nats())
    editor = jaxedit.make_editor("rome", layer=3, **SETTINGS)
    edit, _, _ = editor.edit(model, [REQUEST], editor.init(model, None))
    assert third.edit is not None
    np.testing.assert_array_equal(to_dense(edit.deltas[0]), to_dense(third.edit.deltas[0]))


def test_none_is_chosen_where_none_is_said(golden, always_said):
    alternatives = [{"method": "rome", "layer": 1, **SETTINGS}]
    choice = choose_edit(golden("llama"), REQUEST, alternatives, TEXTS, n_tokens=192)
    assert choice.chosen is None
    assert len(choice.alternatives) == 1


@pytest.mark.parametrize(
    "alternatives", [[], [{"layer": 2}], [{"method": None, "layer": 2}], [{"method": 3}]]
)
def test_alternatives_name_their_method(golden, alternatives):
    with pytest.raises(ValueError, match="expected at least one, each with its method"):
        choose_edit(golden("llama"), REQUEST, alternatives, TEXTS)


def test_an_unknown_name_is_said_before_anything_is_read(golden):
    with pytest.raises(ValueError, match="no hyper-parameter 'lair'"):
        choose_edit(golden("llama"), REQUEST, [{"method": "rome", "lair": 2}], TEXTS)


def test_lists_of_json_are_layers(golden, always_said):
    hyper = {**SETTINGS, "context_templates": [["{}"]]}
    given = {"method": "memit", "layers": [2, 3], "mom2_adjustment": False, **hyper}
    alternatives = json.loads(json.dumps([given]))
    choice = choose_edit(golden("llama"), REQUEST, alternatives, TEXTS, n_tokens=192)
    assert choice.chosen is not None
    assert choice.chosen.edit is not None
    assert [delta.layer for delta in choice.chosen.edit.deltas] == [2, 3]


@pytest.mark.parametrize(
    ("impossible", "said"),
    [
        ({"method": "rome", "layer": 9}, "layer"),
        ({"method": "rome", "layer": -1}, "layer"),
        ({"method": "ft", "layers": [7]}, "layer"),
        ({"method": "memit"}, "layers"),  # none are published for this model
    ],
)
def test_one_that_cannot_be_made_changes_nothing_of_the_others(
    golden, always_said, impossible, said
):
    model = golden("gpt2")
    possible = {"method": "rome", "layer": 2, **SETTINGS}
    alone = choose_edit(model, REQUEST, [possible], TEXTS, n_tokens=192)
    choice = choose_edit(model, REQUEST, [impossible, possible], TEXTS, n_tokens=192)
    failed, made = choice.alternatives
    assert failed.edit is None
    assert said in (failed.error or "")
    assert choice.chosen is made
    assert made.predicted_nats == alone.alternatives[0].predicted_nats
