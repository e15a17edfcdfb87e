"""ROME and C-ROME against the reference implementations: golden vectors, and plain PyTorch on hooks
where all terms count.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import transformers
from reference.rome import Modules, prompt_last, rome

import jaxedit
from jaxedit.edits.edit import to_dense
from jaxedit.edits.serialise import edit_to_arrays, read_edit
from jaxedit.solving.keys import compute_keys, pack_prompts
from jaxedit.study.journal import open_journal

MODULES = {
    "gpt2": Modules("transformer.h.{l}.mlp", "transformer.h.{l}.mlp.c_proj"),
    "gptj": Modules("transformer.h.{l}.mlp", "transformer.h.{l}.mlp.fc_out"),
    "llama": Modules("model.layers.{l}.mlp", "model.layers.{l}.mlp.down_proj"),
    "qwen2": Modules("model.layers.{l}.mlp", "model.layers.{l}.mlp.down_proj"),
    "gpt_neox": Modules("gpt_neox.layers.{l}.mlp", "gpt_neox.layers.{l}.mlp.dense_4h_to_h"),
}
# A target of several tokens, templates in front, and every term of the loss large enough to matter.
REQUEST = jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "the English language")
TEMPLATES = ("{}", "I am a little. {}", "The other day I was talking to. {}")
SETTINGS = {
    "published": dict(
        layer=2,
        v_num_grad_steps=6,
        v_lr=0.5,
        v_weight_decay=0.5,
        kl_factor=0.0625,
        clamp_norm_factor=4.0,
    ),
    "every term": dict(
        layer=2,
        v_num_grad_steps=7,
        v_lr=0.3,
        v_weight_decay=40.0,
        kl_factor=3.0,
        clamp_norm_factor=1.5,
    ),
    "one update": dict(
        layer=3,
        v_num_grad_steps=2,
        v_lr=0.5,
        v_weight_decay=0.5,
        kl_factor=0.0625,
        clamp_norm_factor=4.0,
    ),
}


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def golden_stats(cases: dict, tensors: dict, layer: int) -> jaxedit.Stats:
    cov_FF = tensors[f"mom2/{layer}"].astype(np.float64)
    return jaxedit.Stats.from_moments(
        {layer: cov_FF + cases["rome"]["mom2_ridge"] * np.eye(len(cov_FF))},
        int(tensors["mom2/n_tokens"]),
    )


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize(
    ("variant", "name", "with_stats"),
    [
        ("rome_identity", "rome", False),
        ("rome_mom2", "rome", True),
        ("c_rome_mom2", "c-rome", True),
    ],
)
def test_golden_updates(golden_edited, golden_expected, family, variant, name, with_stats):
    """Delta W = u v to 1e-4 relative in the Frobenius norm."""
    cases, tensors = golden_expected(family)
    hyper = {key: value for key, value in cases["rome"].items() if key != "mom2_ridge"}
    editor = jaxedit.make_editor(name, context_templates=cases["context_templates"], **hyper)
    model = golden_edited(family)
    state = editor.init(model, golden_stats(cases, tensors, hyper["layer"]) if with_stats else None)
    compared = 0
    for i, request in enumerate(cases["requests"]):
        if f"{variant}/{i}/u" not in tensors:
            continue
        edit, _, _ = editor.edit(model, [jaxedit.Request(**request)], state)
        (delta,) = edit.deltas
        wanted_FD = np.outer(tensors[f"{variant}/{i}/u"], tensors[f"{variant}/{i}/v"])
        assert relative(to_dense(delta), wanted_FD) <= 1e-4
        compared += 1
    assert compared == 3


@pytest.fixture(scope="module")
def torch_model(shared):
    """A function: family -> the golden checkpoint as a torch model."""
    made = {}

    def load(family: str):
        if family not in made:
            directory = shared / "golden" / family
            made[family] = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32
            ).eval()
        return made[family]

    return load


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        (family, setting)
        for family in MODULES
        for setting in SETTINGS
        if setting == "every term" or family in ("gpt2", "llama")
    ],
)
@pytest.mark.parametrize("name", ["rome", "c-rome"])
def test_every_term_is_the_references(golden, golden_expected, torch_model, family, setting, name):
    hyper, model = SETTINGS[setting], golden(family)
    cases, tensors = golden_expected(family)
    stats = golden_stats(cases, tensors, hyper["layer"]) if setting == "every term" else None
    cov_FF = None if stats is None else stats.moments[hyper["layer"]]
    wanted = rome(
        torch_model(family),
        model.tokenizer.backend,
        MODULES[family],
        REQUEST,
        TEMPLATES,
        hyper,
        cov=cov_FF,
        prefixed=name == "c-rome",
    )
    editor = jaxedit.make_editor(name, context_templates=TEMPLATES, **hyper)
    edit, _, info = editor.edit(model, [REQUEST], editor.init(model, stats))
    assert info["n_steps"] == wanted.n_steps
    for term, value in (
        ("nll_nats", wanted.nll),
        ("kl", wanted.kl),
        ("weight_decay", wanted.decay),
    ):
        assert info[f"loss_{term}"] == pytest.approx(value, rel=1e-3, abs=1e-5), term
    assert (
        relative(to_dense(edit.deltas[0]), np.outer(wanted.u_F.numpy(), wanted.v_D.numpy())) <= 1e-4
    )


@pytest.mark.parametrize("name", ["rome", "c-rome"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_writes_at_the_prompts_last_token(golden, torch_model, family, name):
    """Key, value, vector and KL position are there; "auto" is that for a subject at position 0, and
    for no other.
    """
    model, request = (
        golden(family),
        jaxedit.Request("{} is spoken in the country of", "A", "the English people"),
    )
    assert len(model.tokenizer.encode("A")) == 1
    module_names, backend = MODULES[family], model.tokenizer.backend
    settings = dict(prefixed=name == "c-rome", at=prompt_last)
    wanted = rome(
        torch_model(family),
        backend,
        module_names,
        request,
        TEMPLATES,
        SETTINGS["every term"],
        **settings,
    )
    for fact_token in ("last", "auto"):
        editor = jaxedit.make_editor(
            name, context_templates=TEMPLATES, fact_token=fact_token, **SETTINGS["every term"]
        )
        edit, _, info = editor.edit(model, [request], editor.init(model, None))
        assert info["n_steps"] == wanted.n_steps
        assert info["loss_kl"] == pytest.approx(wanted.kl, rel=1e-3, abs=1e-5)
        assert (
            relative(to_dense(edit.deltas[0]), np.outer(wanted.u_F.numpy(), wanted.v_D.numpy()))
            <= 1e-4
        )
    elsewhere = []
    for fact_token in ("auto", "subject_last"):
        editor = jaxedit.make_editor(
            name, context_templates=TEMPLATES, fact_token=fact_token, **SETTINGS["published"]
        )
        elsewhere.append(
            to_dense(editor.edit(model, [REQUEST], editor.init(model, None))[0].deltas[0])
        )
    np.testing.assert_array_equal(*elsewhere)


def test_behind_a_begin_of_text_token(golden, torch_model, tmp_path):
    """The edit is the reference's on prompts that begin with the token; it is asked so until it is
    undone.
    """
    model = golden("llama")
    bos_id = model.tokenizer.encode("The")[0]
    tokenizer = dataclasses.replace(model.tokenizer, bos_id=bos_id)
    model = dataclasses.replace(
        model, metadata=dataclasses.replace(model.metadata, tokenizer=tokenizer)
    )
    hyper = dict(context_templates=TEMPLATES, **SETTINGS["published"])
    editor = jaxedit.make_editor("rome", anchor="bos", **hyper)
    edit, _, _ = editor.edit(model, [REQUEST], editor.init(model, None))
    with_bos = dataclasses.replace(tokenizer, add_bos=True)
    always = dataclasses.replace(
        model, metadata=dataclasses.replace(model.metadata, tokenizer=with_bos)
    )
    plain = jaxedit.make_editor("rome", **hyper)
    wanted, _, _ = plain.edit(always, [REQUEST], plain.init(always, None))
    np.testing.assert_array_equal(to_dense(edit.deltas[0]), to_dense(wanted.deltas[0]))
    assert edit.anchor == "bos"
    edited = jaxedit.apply(model, edit)
    assert edited.tokenizer.encode("tongue")[0] == bos_id
    assert not jaxedit.undo(edited, edit).tokenizer.add_bos
    journal = open_journal(tmp_path / "study", {})
    journal.append({"step": 1}, *edit_to_arrays(edit))
    assert read_edit(tmp_path / "study" / "steps" / "000001.safetensors").anchor == "bos"
    none = dataclasses.replace(tokenizer, bos_id=None)
    with pytest.raises(ValueError, match="has no begin-of-text token"):
        editor.init(
            dataclasses.replace(
                model, metadata=dataclasses.replace(model.metadata, tokenizer=none)
            ),
            None,
        )


def test_stops_where_the_references_loss_is_small(golden, torch_model):
    """On a model made confident enough that the loss passes 0.05 before the steps are used up."""
    hyper = dict(
        layer=3,
        v_num_grad_steps=25,
        v_lr=0.5,
        v_weight_decay=0.01,
        kl_factor=0.001,
        clamp_norm_factor=400.0,
    )
    request = jaxedit.Request("The mother tongue belongs to {}", "Danielle Darrieux", "the")
    hf_model, base = copy.deepcopy(torch_model("llama")), golden("llama").base
    hf_model.model.norm.weight.data *= 4
    model = dataclasses.replace(
        golden("llama"), base={**base, "final/norm_scale": base["final/norm_scale"] * 4}
    )
    wanted = rome(hf_model, model.tokenizer.backend, MODULES["llama"], request, TEMPLATES, hyper)
    assert 1 < wanted.n_steps < hyper["v_num_grad_steps"]
    editor = jaxedit.make_editor("rome", context_templates=TEMPLATES, **hyper)
    edit, _, info = editor.edit(model, [request], editor.init(model, None))
    assert info["n_steps"] == wanted.n_steps
    assert info["loss"] == pytest.approx(wanted.nll + wanted.kl + wanted.decay, rel=1e-3)
    assert info["loss"] < 0.05
    assert (
        relative(to_dense(edit.deltas[0]), np.outer(wanted.u_F.numpy(), wanted.v_D.numpy())) <= 1e-4
    )


def test_info_describes_the_update(golden):
    model = golden("gpt2")
    editor = jaxedit.make_editor("rome", context_templates=TEMPLATES, **SETTINGS["published"])
    edit, _, info = editor.edit(model, [REQUEST], editor.init(model, None))
    (delta,) = edit.deltas
    assert np.linalg.norm(delta.u_FR) == pytest.approx(1, rel=1e-6)
    assert info["v_norm"] == pytest.approx(np.linalg.norm(delta.v_RD), rel=1e-6)
    assert info["residual_norm"] == pytest.approx(info["v_norm"] * info["denominator"], rel=1e-5)
    assert info["loss"] == pytest.approx(
        info["loss_nll_nats"] + info["loss_kl"] + info["loss_weight_decay"]
    )
    assert info["delta_norm"] <= 4.0 * info["init_norm"] * (1 + 1e-6)
    assert info["solve_residual"] < 1e-6
    assert edit.norm == pytest.approx(info["v_norm"], rel=1e-6)


def test_second_moments_are_asked_for_or_ignored(golden, golden_expected):
    model = golden("llama")
    cases, tensors = golden_expected("llama")
    stats = golden_stats(cases, tensors, 2)

    def make(adjust):
        return jaxedit.make_editor(
            "rome", context_templates=TEMPLATES, mom2_adjustment=adjust, **SETTINGS["published"]
        )

    with pytest.raises(ValueError, match="mom2_adjustment=True needs second moments"):
        make(True).init(model, None)
    updates = [
        to_dense(make(adjust).edit(model, [REQUEST], make(adjust).init(model, given))[0].deltas[0])
        for adjust, given in ((False, stats), (None, None), (None, stats), (True, stats))
    ]
    np.testing.assert_array_equal(updates[0], updates[1])
    np.testing.assert_array_equal(updates[2], updates[3])
    assert relative(updates[0], updates[2]) > 0.01


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
    hyper = {**SETTINGS["published"], "context_templates": TEMPLATES, **change}
    with pytest.raises(ValueError, match=message):
        jaxedit.make_editor("rome", **hyper).init(golden("gpt2"), None)


def test_keys_have_names(golden):
    """ "prefixed" is C-ROME; "bare" takes the bare prompt's key on both sides and writes the value
    exactly there.
    """
    model, hyper = golden("gpt2"), dict(context_templates=TEMPLATES, **SETTINGS["published"])

    def delta(name, **more):
        editor = jaxedit.make_editor(name, **hyper, **more)
        return editor.edit(model, [REQUEST], editor.init(model, None))[0].deltas[0]

    np.testing.assert_array_equal(
        to_dense(delta("rome", key_variant="prefixed")), to_dense(delta("c-rome"))
    )
    np.testing.assert_array_equal(
        to_dense(delta("rome", key_variant="mixed")), to_dense(delta("rome"))
    )
    questions = pack_prompts(model, [REQUEST], (("{}",),), "mean")
    bare_F = compute_keys(model, questions, hyper["layer"])[1][0]
    bare = delta("rome", key_variant="bare")
    np.testing.assert_allclose(bare.u_FR[:, 0], bare_F / np.linalg.norm(bare_F), atol=1e-6)
    mixed = delta("rome")
    written = [bare_F @ to_dense(each) for each in (bare, mixed)]
    np.testing.assert_allclose(
        written[0], written[1], rtol=1e-3, atol=1e-4
    )  # both are exact at the bare key
    with pytest.raises(
        ValueError, match="key_variant='both': expected one of mixed, prefixed, bare"
    ):
        delta("rome", key_variant="both")


def test_stats_of_another_model(golden, golden_expected):
    cases, tensors = golden_expected("gpt2")
    editor = jaxedit.make_editor("rome", context_templates=TEMPLATES, **SETTINGS["published"])
    with pytest.raises(ValueError, match="192 wide, the model's MLP 112: another model's"):
        editor.init(golden("llama"), golden_stats(cases, tensors, 2))
    with pytest.raises(ValueError, match=r"layers \[3\], layer 2 is asked for"):
        editor.init(golden("gpt2"), golden_stats(cases, tensors, 3))


def test_one_request_at_a_time(golden):
    editor = jaxedit.make_editor("rome", context_templates=TEMPLATES, **SETTINGS["published"])
    other = dataclasses.replace(REQUEST, subject="Marie Curie")
    with pytest.raises(ValueError, match="one request at a time, got 2"):
        editor.edit(golden("gpt2"), [REQUEST, other], editor.init(golden("gpt2"), None))


def test_subject_longer_than_the_context(golden):
    editor = jaxedit.make_editor("rome", context_templates=TEMPLATES, **SETTINGS["published"])
    long = dataclasses.replace(REQUEST, subject="x y " * 300)
    with pytest.raises(
        ValueError, match=r"the request .* in its templates has \d+ tokens, more than the"
    ):
        editor.edit(golden("gpt2"), [long], editor.init(golden("gpt2"), None))


def test_sampled_templates_follow_the_seed(golden):
    def make(seed):
        editor = jaxedit.make_editor("rome", layer=2, seed=seed)
        return editor.init(golden("gpt2"), None).context_templates

    first, again, other = make(0), make(0), make(1)
    assert first == again
    assert first != other
    assert len(first) == 21
    assert first[0] == "{}"
    assert all(template.count("{}") == 1 and template.endswith("{}") for template in first)
