"""Rank-one edits: what their hyper-parameters, stats and templates do, and what is refused."""

import dataclasses

import numpy as np
import pytest
from reference.distance import relative
from reference.rank_one import REQUEST, SETTINGS, TEMPLATES, golden_stats, make_edit, update

import jaxedit
from jaxedit.edits.edit import edit_to_arrays, read_edit, to_dense
from jaxedit.files import to_safetensors
from jaxedit.solving.keys import compute_keys
from jaxedit.solving.packed_prompts import pack_prompts

PUBLISHED = SETTINGS["published"]


def rome(**changes):
    return jaxedit.make_editor("rome", **{"context_templates": TEMPLATES, **PUBLISHED, **changes})


def with_tokenizer(model, **changes):
    """Return the model with a changed tokenizer."""
    tokenizer = dataclasses.replace(model.metadata.tokenizer, **changes)
    metadata = dataclasses.replace(model.metadata, tokenizer=tokenizer)
    return dataclasses.replace(model, metadata=metadata)


@pytest.fixture(scope="module")
def anchored(golden):
    """Edit behind a begin-of-text token; return the model with such a token, and the edit."""
    model = golden("llama")
    model = with_tokenizer(model, bos_id=model.tokenizer.encode("The")[0])
    editor = rome(anchor="bos")
    return model, editor.edit(model, [REQUEST], editor.init(model, None))[0]


def test_an_anchored_edit_is_that_of_prompts_behind_the_token(anchored):
    model, edit = anchored
    always = with_tokenizer(model, add_bos=True)
    np.testing.assert_array_equal(to_dense(edit.deltas[0]), update("rome", always, **PUBLISHED))


def test_an_anchored_model_is_asked_behind_the_token_until_the_edit_is_undone(anchored):
    model, edit = anchored
    edited = jaxedit.apply(model, edit)
    assert edited.tokenizer.encode("tongue")[0] == model.tokenizer.bos_id
    assert not jaxedit.undo(edited, edit).tokenizer.add_bos


def test_an_anchor_survives_the_file_of_its_step(anchored, tmp_path):
    _, edit = anchored
    assert edit.anchor == "bos"
    path = tmp_path / "000001.safetensors"
    path.write_bytes(to_safetensors(*edit_to_arrays(edit)))
    assert read_edit(path).anchor == "bos"


def test_an_anchor_needs_a_begin_of_text_token(golden):
    without = with_tokenizer(golden("llama"), bos_id=None)
    with pytest.raises(ValueError, match="has no begin-of-text token"):
        rome(anchor="bos").init(without, None)


def test_info_describes_the_update(golden):
    edit, info = make_edit("rome", golden("gpt2"), **PUBLISHED)
    (delta,) = edit.deltas
    assert np.linalg.norm(delta.u_FR) == pytest.approx(1, rel=1e-6)
    assert info["v_norm"] == pytest.approx(np.linalg.norm(delta.v_RD), rel=1e-6)
    assert info["residual_norm"] == pytest.approx(info["v_norm"] * info["denominator"], rel=1e-5)
    terms = info["loss_nll_nats"] + info["loss_kl"] + info["loss_weight_decay"]
    assert info["loss"] == pytest.approx(terms)
    assert info["delta_norm"] <= 4.0 * info["init_norm"] * (1 + 1e-6)
    assert info["solve_residual"] < 1e-6
    assert edit.norm == pytest.approx(info["v_norm"], rel=1e-6)


def test_second_moments_are_asked_for_or_ignored(golden, golden_expected):
    model = golden("llama")
    stats = golden_stats(*golden_expected("llama"), 2)
    with pytest.raises(ValueError, match="mom2_adjustment=True needs second moments"):
        rome(mom2_adjustment=True).init(model, None)
    ignored, absent, used, asked_for = (
        update("rome", model, stats=given, mom2_adjustment=adjust, **PUBLISHED)
        for adjust, given in ((False, stats), (None, None), (None, stats), (True, stats))
    )
    np.testing.assert_array_equal(ignored, absent)
    np.testing.assert_array_equal(used, asked_for)
    assert relative(ignored, used) > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(layer=5), "layer=5: .* can be edited at layers 0 to 4"),
        (dict(layer=-1), "layer=-1"),
        (dict(v_loss_layer=3), "v_loss_layer=3: .* here 5"),
        (dict(v_num_grad_steps=0), "v_num_grad_steps=0"),
        (dict(v_lr=-0.5), "v_lr=-0.5"),
        (
            dict(fact_token="first"),
            "fact_token='first': expected one of 'subject_last', 'last', 'auto'",
        ),
        (dict(anchor="eos"), "anchor='eos': expected 'bos', or nothing"),
        (dict(context_templates=("no place",)), "must have exactly one"),
        (dict(context_templates="{}"), "context_templates='{}'; expected tuple or nothing"),
    ],
)
def test_a_hyper_parameter_that_cannot_be_meant(golden, change, message):
    with pytest.raises(ValueError, match=message):
        rome(**change).init(golden("gpt2"), None)


def test_prefixed_keys_are_those_of_c_rome(golden):
    model = golden("gpt2")
    np.testing.assert_array_equal(
        update("rome", model, key_variant="prefixed", **PUBLISHED),
        update("c-rome", model, **PUBLISHED),
    )


def test_mixed_keys_are_the_default(golden):
    model = golden("gpt2")
    np.testing.assert_array_equal(
        update("rome", model, key_variant="mixed", **PUBLISHED), update("rome", model, **PUBLISHED)
    )


def test_bare_keys_write_in_the_direction_of_the_bare_prompts_key(golden):
    """What is written at that key is the same as with mixed keys: both are exact there."""
    model = golden("gpt2")
    packed = pack_prompts(model, [REQUEST], (("{}",),), "mean")
    bare_F = compute_keys(model, packed, PUBLISHED["layer"])[1][0]
    edit, _ = make_edit("rome", model, key_variant="bare", **PUBLISHED)
    (delta,) = edit.deltas
    np.testing.assert_allclose(delta.u_FR[:, 0], bare_F / np.linalg.norm(bare_F), atol=1e-6)
    mixed_FD = update("rome", model, **PUBLISHED)
    np.testing.assert_allclose(bare_F @ to_dense(delta), bare_F @ mixed_FD, rtol=1e-3, atol=1e-4)


def test_unknown_keys_are_refused():
    with pytest.raises(
        ValueError, match="key_variant='both': expected one of mixed, prefixed, bare"
    ):
        rome(key_variant="both")


def test_stats_of_another_model_or_layer_are_refused(golden, golden_expected):
    cases, tensors = golden_expected("gpt2")
    with pytest.raises(ValueError, match="192 wide, the model's MLP 112: another model's"):
        rome().init(golden("llama"), golden_stats(cases, tensors, 2))
    with pytest.raises(ValueError, match=r"layers \[3\], layer 2 is asked for"):
        rome().init(golden("gpt2"), golden_stats(cases, tensors, 3))


def test_one_request_at_a_time(golden):
    editor, model = rome(), golden("gpt2")
    other = dataclasses.replace(REQUEST, subject="Marie Curie")
    with pytest.raises(ValueError, match="one request at a time, got 2"):
        editor.edit(model, [REQUEST, other], editor.init(model, None))


def test_a_subject_longer_than_the_context_is_refused(golden):
    editor, model = rome(), golden("gpt2")
    long = dataclasses.replace(REQUEST, subject="x y " * 300)
    message = r"the request .* in its templates has \d+ tokens, more than the"
    with pytest.raises(ValueError, match=message):
        editor.edit(model, [long], editor.init(model, None))


def test_sampled_templates_follow_the_seed(golden):
    def templates(seed):
        editor = jaxedit.make_editor("rome", layer=2, seed=seed)
        return editor.init(golden("gpt2"), None).context_templates

    first, again, other = templates(0), templates(0), templates(1)
    assert first == again
    assert first != other
    assert len(first) == 21
    assert first[0] == "{}"
    assert all(template.count("{}") == 1 and template.endswith("{}") for template in first)
