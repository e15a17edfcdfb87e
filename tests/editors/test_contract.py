"""What every editor promises, for every file in jaxedit/editors without naming one."""

import dataclasses

import numpy as np
import pytest

import jaxedit
from jaxedit import editors
from jaxedit.edits.edit import matrix
from jaxedit.edits.journal import open_journal, pack_edit, read_edit
from jaxedit.metrics.facts import answers

FAMILIES = ("gpt2", "gptj", "llama")
TEMPLATES = ("{}", "I am a little. {}")
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "English"),
]


def make(name: str):
    """An editor of small cost; every hyper-parameter without a default gets a value that suits any method."""
    values = {"layer": 2, "layers": [2], "context_templates": TEMPLATES, "v_num_grad_steps": 8}
    known = editors.defaults_of(name)
    return jaxedit.make_editor(name, **{key: value for key, value in values.items() if key in known})


@pytest.fixture(scope="module", params=[(family, name) for family in FAMILIES for name in editors.names()], ids=str)
def case(request, golden):
    """A model, an editor, its state and what it made of the first request."""
    family, name = request.param
    model = golden(family)
    before = {key: np.array(value) for key, value in model.base.items()}
    editor = make(name)
    state = editor.init(model, None)
    edit, after, info = editor.edit(model, REQUESTS[:1], state)
    return model, before, editor, edit, after, info


def probability(model, request) -> float:
    found = answers(model, [(request.question, request.target_new)])
    return float(np.exp(-found.nll_nats[0] * found.n_tokens[0]))


def test_target_becomes_likelier(case):
    model, _, _, edit, _, _ = case
    assert probability(jaxedit.apply(model, edit), REQUESTS[0]) > 1.2 * probability(model, REQUESTS[0])


def test_input_model_is_unchanged(case):
    model, before, _, edit, _, _ = case
    jaxedit.apply(model, edit)
    assert not model.overlay.delta
    assert model.companion.history == ()
    for name, value in before.items():
        np.testing.assert_array_equal(np.asarray(model.base[name]), value)


def test_undo_is_bit_exact(case):
    model, _, editor, edit, state, _ = case
    tokens = [model.tokenizer.encode("The Eiffel Tower is located in the city of")]
    once = jaxedit.apply(model, edit)
    second, _, _ = editor.edit(once, REQUESTS[1:], state)
    np.testing.assert_array_equal(
        np.asarray(jaxedit.logits(jaxedit.undo(jaxedit.apply(once, second), second), tokens)),
        np.asarray(jaxedit.logits(once, tokens)),
    )


def test_edit_survives_the_journal(case, tmp_path):
    _, _, editor, edit, _, _ = case
    journal = open_journal(tmp_path / "run", {"editor": editor.name})
    journal.append({"step": 0}, *pack_edit(edit))
    again = read_edit(tmp_path / "run" / "steps" / "000000.safetensors")
    assert [delta[:2] for delta in again.deltas] == [delta[:2] for delta in edit.deltas]
    for mine, theirs in zip(edit.deltas, again.deltas, strict=True):
        np.testing.assert_array_equal(matrix(mine), matrix(theirs))
    assert set(again.memory) == set(edit.memory)
    assert again.dense().keys() == edit.dense().keys()


def test_slots_hold_every_delta(case):
    _, _, editor, edit, _, _ = case
    assert all(delta.layer in editor.slots[delta.weight] for delta in edit.deltas)


def test_second_edit_builds_on_the_first(case):
    """On the edited model the second edit is another than on the untouched one, and both facts count."""
    model, _, editor, edit, state, _ = case
    once = jaxedit.apply(model, edit)
    on_edited, _, _ = editor.edit(once, REQUESTS[1:], state)
    on_untouched, _, _ = editor.edit(model, REQUESTS[1:], editor.init(model, None))
    assert not np.array_equal(matrix(on_edited.deltas[0]), matrix(on_untouched.deltas[0]))
    twice = jaxedit.apply(once, on_edited)
    assert probability(twice, REQUESTS[1]) > 1.2 * probability(model, REQUESTS[1])


def test_absorbing_an_edit_rebuilds_the_state(case):
    model, _, editor, edit, state, _ = case
    rebuilt = editor.absorb(editor.init(model, None), edit)
    once = jaxedit.apply(model, edit)
    a, _, _ = editor.edit(once, REQUESTS[1:], rebuilt)
    b, _, _ = editor.edit(once, REQUESTS[1:], state)
    np.testing.assert_array_equal(matrix(a.deltas[0]), matrix(b.deltas[0]))


def test_info_is_finite_numbers(case):
    info = case[-1]
    assert info
    assert all(np.isfinite(float(value)) for value in info.values())


def test_same_input_gives_the_same_edit(case):
    model, _, editor, edit, _, _ = case
    again, _, _ = editor.edit(model, REQUESTS[:1], editor.init(model, None))
    for mine, theirs in zip(edit.deltas, again.deltas, strict=True):
        np.testing.assert_array_equal(matrix(mine), matrix(theirs))


def test_bfloat16_weights_keep_float32_edits(shared):
    """An edit of a bfloat16 model is float32 and adds to it without being rounded into its weights."""
    model = jaxedit.load(str(shared / "golden" / "llama"), dtype="bfloat16")
    for name in editors.names():
        editor = make(name)
        edit, _, _ = editor.edit(model, REQUESTS[:1], editor.init(model, None))
        edited = jaxedit.apply(model, edit)
        assert {str(delta.dtype) for delta in edited.overlay.delta.values()} == {"float32"}
        np.testing.assert_array_equal(np.asarray(edited.overlay.delta["mlp/w_down"][0]), matrix(edit.deltas[0]))
        assert probability(edited, REQUESTS[0]) > probability(model, REQUESTS[0])


@pytest.mark.parametrize("name", editors.names())
def test_hyper_parameters_are_checked(name):
    with pytest.raises(ValueError, match="no hyper-parameter 'v_learning_rate'"):
        jaxedit.make_editor(name, layers=[2], v_learning_rate=0.5)
    assert dataclasses.is_dataclass(make(name).hyper)


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="did you mean 'rome'"):
        jaxedit.make_editor("romee", layer=2)
