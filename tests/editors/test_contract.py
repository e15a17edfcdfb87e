"""What every editor promises, for every file in jaxedit/editors without naming one."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from descending_network import descending_network
from safetensors.numpy import load_file

import jaxedit
from jaxedit.editors import _base, _registry
from jaxedit.edits.edit import edit_to_arrays, read_edit, to_dense
from jaxedit.files import to_safetensors
from jaxedit.metrics.facts import score_answers

SHARED = Path(__file__).parents[3] / "shared"
FAMILIES = ("llama",)  # what all five families compute is held to the golden vectors elsewhere
WIDTH = 48  # of the residual stream
TEMPLATES = ("{}", "I am a little. {}")
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "English"),
]


def settings_of(name: str) -> dict[str, Any]:
    """Return hyper-parameters of small cost that suit any method on models this small."""
    known = _registry.hyper_defaults(name)
    is_batch = "mom2_update_weight" in known or "nullspace_threshold" in known
    values = {
        "layer": 2,
        "layers": [2, 3] if is_batch else [2],
        "context_templates": TEMPLATES if "layer" in known else [TEMPLATES[:1], TEMPLATES[1:]],
        "v_num_grad_steps": 8,
        "v_lr": 0.5,
        # what these models' MLPs put out is so small that the published weight outdoes the target
        "v_weight_decay": 1e-3,
        "kl_factor": 0.0625 if known.get("kl_factor") else 0.0,
        "clamp_norm_factor": 4.0,
        "mom2_update_weight": 1.0,
        "nullspace_threshold": 0.5,
        "L2": 1.0,
        "lambda1": 1.0,
        "lambda2": 1.0,
        # NSE's distance, a ridge, or LyapLock's factor
        "alpha": 0.0 if "upper_bound" in known else 1e-3 if "weights" in known else 60.0,
        "lr": 5e-3,
        "energy_threshold": 0.8,
    }
    if "network" in known:
        values["network"] = descending_network(SHARED / "golden" / "llama", (2,))
    return {key: value for key, value in values.items() if key in known}


def make(name: str, **more):
    """Make an editor with these settings and some more."""
    return jaxedit.make_editor(name, **settings_of(name) | more)


@pytest.fixture(scope="module")
def stats_of(shared):
    """Make a function: family -> the golden second moments."""

    def read(family: str) -> jaxedit.Stats:
        tensors = load_file(shared / "golden" / family / "expected.safetensors")
        rng = np.random.default_rng(0)
        gradients = {layer: np.cov(rng.standard_normal((WIDTH, 2 * WIDTH))) for layer in (2, 3)}
        return jaxedit.Stats.from_moments(
            {layer: tensors[f"mom2/{layer}"] for layer in (2, 3)},
            int(tensors["mom2/n_tokens"]),
            gradients=gradients,  # no golden ones
        )

    return read


class Case(NamedTuple):
    """A model, an editor, and what it made of the first request."""

    model: jaxedit.Model
    before: dict[str, np.ndarray]  # the model's weights as they were
    stats: jaxedit.Stats
    editor: _base.Editor
    edit: jaxedit.Edit
    state: Any
    info: dict[str, float]


@pytest.fixture(
    scope="module",
    params=[(family, name) for family in FAMILIES for name in _registry.method_names()],
    ids=str,
)
def case(request, golden, stats_of):
    family, name = request.param
    model, stats = golden(family), stats_of(family)
    before = {key: np.array(value) for key, value in model.base.items()}
    editor = make(name)
    edit, state, info = editor.edit(model, REQUESTS[:1], editor.init(model, stats))
    yield Case(model, before, stats, editor, edit, state, info)
    jax.clear_caches()  # each method compiles programs of its own


def probability(model, request) -> float:
    found = score_answers(model, [(request.prompt_text, request.target_new)])
    return float(np.exp(-found.nll_nats[0] * found.n_tokens[0]))


def test_target_becomes_likelier(case):
    model, edit = case.model, case.edit
    edited = jaxedit.apply(model, edit)
    assert probability(edited, REQUESTS[0]) > 1.2 * probability(model, REQUESTS[0])


def test_input_model_is_unchanged(case):
    model, before, edit = case.model, case.before, case.edit
    jaxedit.apply(model, edit)
    assert not model.overlay.delta
    assert model.metadata.history == ()
    for name, value in before.items():
        np.testing.assert_array_equal(np.asarray(model.base[name]), value)


def test_undo_is_bit_exact(case):
    model, editor, edit, state = case.model, case.editor, case.edit, case.state
    tokens = [model.tokenizer.encode("The Eiffel Tower is located in the city of")]
    once = jaxedit.apply(model, edit)
    second, _, _ = editor.edit(once, REQUESTS[1:], state)
    undone = jaxedit.undo(jaxedit.apply(once, second), second)
    expected = np.asarray(jaxedit.logits(once, tokens))
    np.testing.assert_array_equal(np.asarray(jaxedit.logits(undone, tokens)), expected)


def test_edit_survives_the_file_of_its_step(case, tmp_path):
    edit, path = case.edit, tmp_path / "000000.safetensors"
    path.write_bytes(to_safetensors(*edit_to_arrays(edit)))
    again = read_edit(path)
    assert [delta[:2] for delta in again.deltas] == [delta[:2] for delta in edit.deltas]
    for mine, theirs in zip(edit.deltas, again.deltas, strict=True):
        np.testing.assert_array_equal(to_dense(mine), to_dense(theirs))
    assert set(again.memory) == set(edit.memory)
    for name, array in edit.memory.items():
        np.testing.assert_array_equal(again.memory[name], array)
    assert again.dense().keys() == edit.dense().keys()


def test_slots_hold_every_delta(case):
    slots = case.editor.slots(case.model)
    assert all(delta.layer in slots[delta.weight] for delta in case.edit.deltas)


def test_second_edit_builds_on_the_first(case):
    """The second edit depends on the first, and its target too becomes likelier."""
    model, editor, edit, state = case.model, case.editor, case.edit, case.state
    once = jaxedit.apply(model, edit)
    on_edited, _, _ = editor.edit(once, REQUESTS[1:], state)
    on_untouched, _, _ = editor.edit(model, REQUESTS[1:], editor.init(model, case.stats))
    assert not np.array_equal(to_dense(on_edited.deltas[0]), to_dense(on_untouched.deltas[0]))
    twice = jaxedit.apply(once, on_edited)
    assert probability(twice, REQUESTS[1]) > 1.2 * probability(model, REQUESTS[1])


def test_restoring_an_edit_rebuilds_the_state(case):
    model, editor, edit, state = case.model, case.editor, case.edit, case.state
    rebuilt = editor.restore(editor.init(model, case.stats), edit)
    once = jaxedit.apply(model, edit)
    a, _, _ = editor.edit(once, REQUESTS[1:], rebuilt)
    b, _, _ = editor.edit(once, REQUESTS[1:], state)
    np.testing.assert_array_equal(to_dense(a.deltas[0]), to_dense(b.deltas[0]))


def test_an_editor_of_the_published_layers_restores_an_edit(case, monkeypatch):
    layer_name = _registry.layer_field(case.editor.name)
    settings = settings_of(case.editor.name)
    published = {layer_name: settings.pop(layer_name)}  # a stand-in: none is for models this small
    monkeypatch.setattr(_registry, "published_hyper", lambda name, model: published)
    editor = jaxedit.make_editor(case.editor.name, **settings)
    rebuilt = editor.restore(editor.init(case.model, case.stats), case.edit)
    mine, theirs = jax.tree.leaves(case.state), jax.tree.leaves(rebuilt)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("more", [{}, {"max_norm_ratio": 0.5}], ids=["alone", "constrained"])
@pytest.mark.parametrize("name", _registry.method_names())
def test_states_offer_the_context_templates(golden, stats_of, name, more):
    editor = make(name, **more)
    state = editor.init(golden("llama"), stats_of("llama"))
    given = settings_of(name).get("context_templates")
    offered = getattr(state, "context_templates", None)
    assert (editor.context_templates is None) == (given is None) == (offered is None)
    if editor.context_templates is not None:
        assert list(offered) == list(given)
        assert editor.context_templates(state) is offered


def test_info_is_finite_numbers(case):
    info = case.info
    assert info
    assert all(np.isfinite(float(value)) for value in info.values())


def test_same_input_gives_the_same_edit(case):
    model, editor, edit = case.model, case.editor, case.edit
    again, _, _ = editor.edit(model, REQUESTS[:1], editor.init(model, case.stats))
    for mine, theirs in zip(edit.deltas, again.deltas, strict=True):
        np.testing.assert_array_equal(to_dense(mine), to_dense(theirs))


def test_bfloat16_weights_keep_float32_edits(shared, stats_of):
    """An edit of a bfloat16 model is float32 and is not rounded into its weights."""
    model = jaxedit.load(str(shared / "golden" / "llama"), dtype="bfloat16")
    # One layer, several, with a history, a whole matrix.
    for name in ("rome", "memit", "alphaedit", "ft"):
        editor = make(name)
        edit, _, _ = editor.edit(model, REQUESTS[:1], editor.init(model, stats_of("llama")))
        edited = jaxedit.apply(model, edit)
        assert {str(delta.dtype) for delta in edited.overlay.delta.values()} == {"float32"}
        np.testing.assert_array_equal(
            np.asarray(edited.overlay.delta["mlp/w_down"][0]), to_dense(edit.deltas[0])
        )
        assert probability(edited, REQUESTS[0]) > probability(model, REQUESTS[0])


@pytest.mark.parametrize("name", _registry.method_names())
def test_an_edit_needs_a_request(golden, stats_of, name):
    model, editor = golden("llama"), make(name)
    state = editor.init(model, stats_of("llama"))
    with pytest.raises(ValueError, match=r"at least one request|one request at a time, got 0"):
        editor.edit(model, [], state)


@pytest.mark.parametrize("name", _registry.method_names())
def test_hyper_parameters_are_checked(name):
    with pytest.raises(ValueError, match="no hyper-parameter 'v_learning_rate'"):
        jaxedit.make_editor(name, layers=[2], v_learning_rate=0.5)
    assert dataclasses.is_dataclass(make(name).hyper)
    assert make(name).hyper.anchor is None


@pytest.mark.parametrize("name", _registry.method_names())
def test_hyper_parameters_given_as_numpy_numbers_can_be_written(name):
    layer_name = _registry.layer_field(name)
    given = np.int64(2) if layer_name == "layer" else [np.int64(2)]
    hyper = dataclasses.asdict(jaxedit.make_editor(name, **{layer_name: given}).hyper)
    assert json.loads(json.dumps(hyper))[layer_name] == (2 if layer_name == "layer" else [2])


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="did you mean 'rome'"):
        jaxedit.make_editor("romee", layer=2)
