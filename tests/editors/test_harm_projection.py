"""The harm projection in the editors that have it; the others do not know its name."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxedit
from jaxedit.editors import hyper_defaults, method_names
from jaxedit.edits.edit import EDITED_WEIGHT, to_dense
from jaxedit.edits.predicted_change import loss_scores
from jaxedit.solving.harm_texts import LEAST_TOKENS, PART_TOKENS, choose_parts

TEXTS = [
    "The Eiffel Tower is located in the city of Paris, and the Louvre is not far from it at all.",
    " Once upon a time there was a little girl who lived in the forest with her old grandmother.",
    " The NBA and MLB haven't sold lawmakers on a cut so far, but they will try again next year.",
]
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "English"),
]
ONE_LAYER = ("rome", "c-rome")
SEVERAL = ("memit", "memit-sequential", "encore", "emmet", "pmet", "alphaedit")
SETTINGS = dict(v_num_grad_steps=4, v_weight_decay=1e-3, clamp_norm_factor=4.0)


@pytest.fixture(scope="module")
def stats(shared):
    tensors = load_file(shared / "golden" / "llama" / "expected.safetensors")
    moments = {layer: tensors[f"mom2/{layer}"] for layer in (2, 3)}
    return jaxedit.Stats.from_moments(moments, int(tensors["mom2/n_tokens"]))


@pytest.fixture(scope="module")
def harm_texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("harm") / "harm.json"
    path.write_text(json.dumps(TEXTS), encoding="utf-8")
    return str(path)


def make(method, **more):
    hyper = SETTINGS | more
    if method in ONE_LAYER:
        return jaxedit.make_editor(method, layer=2, context_templates=("{}", "So {}"), **hyper)
    own = dict(mom2_update_weight=1.0, nullspace_threshold=0.5, L2=1.0)
    hyper |= {name: value for name, value in own.items() if name in hyper_defaults(method)}
    groups = (("{}",), ("So {}",))
    return jaxedit.make_editor(method, layers=[2, 3], context_templates=groups, **hyper)


def edit_of(editor, model, stats, requests):
    """Edit; return the edit, its info and the state that it was made with."""
    state = editor.init(model, stats)
    edit, after, info = editor.edit(model, requests, state)
    return edit, after, info


@pytest.mark.parametrize("method", ONE_LAYER + SEVERAL)
def test_harm_falls_and_without_a_weight_the_bits_are_the_methods(
    golden, stats, harm_texts, method
):
    model = golden("llama")
    requests = REQUESTS[:1] if method in ONE_LAYER else REQUESTS
    plain, _, info = edit_of(make(method), model, stats, requests)
    assert "harm_after_nats" not in info
    off = make(method, harm_projection=0.0, harm_texts=harm_texts)
    unchanged, _, _ = edit_of(off, model, stats, requests)
    for mine, theirs in zip(unchanged.deltas, plain.deltas, strict=True):
        np.testing.assert_array_equal(to_dense(mine), to_dense(theirs))

    editor = make(method, harm_projection=1e4, harm_texts=harm_texts, harm_tokens=192)
    projected, state, info = edit_of(editor, model, stats, requests)
    assert info["harm_after_nats"] < info["harm_before_nats"]
    assert info["harm_norm_ratio"] > 0.5
    scores = loss_scores(state.harm.probe, projected.deltas)
    after = 0.7 * np.mean(0.5 * scores[1:] ** 2)
    assert info["harm_after_nats"] == pytest.approx(after, rel=1e-6)

    # The next edit, where there is a history with the keys of this one.
    edited = jaxedit.apply(model, projected)
    again, _, info = editor.edit(edited, REQUESTS[:1], state)
    assert info["harm_after_nats"] < info["harm_before_nats"]
    assert {delta.weight for delta in again.deltas} == {EDITED_WEIGHT}


def test_the_value_is_written_all_the_same(golden, stats, harm_texts):
    """What the first layer's keys read of the update is the same to 1e-5."""
    model = golden("llama")
    hyper = dict(harm_projection=1e4, harm_texts=harm_texts, harm_tokens=192)
    for method in ("c-rome", "memit-sequential"):
        plain, _, _ = edit_of(make(method), model, stats, REQUESTS[:1])
        projected, _, _ = edit_of(make(method, **hyper), model, stats, REQUESTS[:1])
        key_F = np.asarray(plain.deltas[0].u_FR)[:, 0]
        if "keys/2" in plain.memory:
            key_F = plain.memory["keys/2"][0]
        else:  # M is C: the key is C u
            key_F = stats.of(model, 2) @ key_F
        wanted_D, found_D = (key_F @ to_dense(each.deltas[0]) for each in (plain, projected))
        assert np.linalg.norm(found_D - wanted_D) < 1e-5 * np.linalg.norm(wanted_D)
        moved = np.linalg.norm(to_dense(projected.deltas[0]) - to_dense(plain.deltas[0]))
        assert moved > 1e-3 * np.linalg.norm(to_dense(plain.deltas[0]))


def test_single_edits_made_together_are_those_made_alone(golden, stats, harm_texts):
    model = golden("llama")
    editor = make("rome", harm_projection=100.0, harm_texts=harm_texts, harm_tokens=192)
    state = editor.init(model, stats)
    for request, (edit, info) in zip(
        REQUESTS, editor.edit_each(model, REQUESTS, state), strict=True
    ):
        alone, _, _ = editor.edit(model, [request], state)
        np.testing.assert_allclose(
            to_dense(edit.deltas[0]), to_dense(alone.deltas[0]), rtol=1e-3, atol=1e-6
        )
        assert info["harm_after_nats"] < info["harm_before_nats"]


@pytest.mark.parametrize("method", sorted(set(method_names()) - {*ONE_LAYER, *SEVERAL}))
def test_other_methods_do_not_have_it(method):
    assert not [name for name in hyper_defaults(method) if name.startswith("harm")]
    with pytest.raises(ValueError, match="no hyper-parameter 'harm_projection'"):
        jaxedit.make_editor(method, layers=[2], harm_projection=1.0)


def test_texts_must_be_given(tmp_path):
    with pytest.raises(ValueError, match=r"harm_projection=1.0 needs texts .* give harm_texts="):
        make("rome", harm_projection=1.0)


def test_parts_are_spread_over_the_texts(golden):
    model = golden("llama")
    texts = [" ".join(f"{word} {i}" for i in range(90)) for word in ("one", "two", "six")]
    tokens = [model.tokenizer.encode(text, bos=False) for text in texts]
    n_whole = [len(each) // PART_TOKENS for each in tokens]
    assert min(n_whole) >= 2
    parts = choose_parts(model, texts, 3 * PART_TOKENS)
    assert len(parts) == 3
    for part in parts:
        assert LEAST_TOKENS <= len(part) <= PART_TOKENS
        assert any(part == each[i : i + len(part)] for each in tokens for i in range(len(each)))
    assert parts[0] == tokens[0][:PART_TOKENS]
    with pytest.raises(ValueError, match="0 parts of 16 tokens or more"):
        choose_parts(model, ["short"], 4000)
    with pytest.raises(ValueError, match="harm_tokens=63"):
        choose_parts(model, texts, 63)
