"""ROME and C-ROME against the reference implementations: golden vectors, and PyTorch on hooks."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import transformers
from reference.distance import relative
from reference.rank_one import REQUEST, SETTINGS, TEMPLATES, golden_stats, make_edit, update
from reference.rome import Found, Modules, prompt_last, rome

import jaxedit
from jaxedit.edits.edit import to_dense

MODULES = {
    "gpt2": Modules("transformer.h.{l}.mlp", "transformer.h.{l}.mlp.c_proj"),
    "gptj": Modules("transformer.h.{l}.mlp", "transformer.h.{l}.mlp.fc_out"),
    "llama": Modules("model.layers.{l}.mlp", "model.layers.{l}.mlp.down_proj"),
    "qwen2": Modules("model.layers.{l}.mlp", "model.layers.{l}.mlp.down_proj"),
    "gpt_neox": Modules("gpt_neox.layers.{l}.mlp", "gpt_neox.layers.{l}.mlp.dense_4h_to_h"),
}


@pytest.fixture(scope="module")
def torch_model(shared):
    """Make a function: family -> the golden checkpoint as a torch model; each is loaded once."""
    made = {}

    def load(family: str):
        if family not in made:
            directory = shared / "golden" / family
            made[family] = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32
            ).eval()
        return made[family]

    return load


def assert_same_update(edit: jaxedit.Edit, wanted: Found) -> None:
    """Compare delta W to 1e-4 relative in the Frobenius norm."""
    wanted_FD = np.outer(wanted.u_F.numpy(), wanted.v_D.numpy())
    assert relative(to_dense(edit.deltas[0]), wanted_FD) <= 1e-4


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
    edit, info = make_edit(name, model, stats=stats, **hyper)
    assert info["n_steps"] == wanted.n_steps
    for term, value in (
        ("nll_nats", wanted.nll),
        ("kl", wanted.kl),
        ("weight_decay", wanted.decay),
    ):
        assert info[f"loss_{term}"] == pytest.approx(value, rel=1e-3, abs=1e-5), term
    assert_same_update(edit, wanted)


@pytest.mark.parametrize("name", ["rome", "c-rome"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("fact_token", ["last", "auto"])
def test_writes_at_the_prompts_last_token(golden, torch_model, family, name, fact_token):
    """Key, value, vector and KL position are there; at "auto" for a subject at position 0."""
    model, hyper = golden(family), SETTINGS["every term"]
    request = jaxedit.Request("{} is spoken in the country of", "A", "the English people")
    assert len(model.tokenizer.encode("A")) == 1
    wanted = rome(
        torch_model(family),
        model.tokenizer.backend,
        MODULES[family],
        request,
        TEMPLATES,
        hyper,
        prefixed=name == "c-rome",
        at=prompt_last,
    )
    edit, info = make_edit(name, model, request, fact_token=fact_token, **hyper)
    assert info["n_steps"] == wanted.n_steps
    assert info["loss_kl"] == pytest.approx(wanted.kl, rel=1e-3, abs=1e-5)
    assert_same_update(edit, wanted)


@pytest.mark.parametrize("name", ["rome", "c-rome"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_auto_is_the_subjects_token_behind_position_0(golden, family, name):
    model, hyper = golden(family), SETTINGS["published"]
    np.testing.assert_array_equal(
        update(name, model, fact_token="auto", **hyper),
        update(name, model, fact_token="subject_last", **hyper),
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
    loud = {**base, "final/norm_scale": base["final/norm_scale"] * 4}
    model = dataclasses.replace(golden("llama"), base=loud)
    wanted = rome(hf_model, model.tokenizer.backend, MODULES["llama"], request, TEMPLATES, hyper)
    assert 1 < wanted.n_steps < hyper["v_num_grad_steps"]
    edit, info = make_edit("rome", model, request, **hyper)
    assert info["n_steps"] == wanted.n_steps
    assert info["loss"] == pytest.approx(wanted.nll + wanted.kl + wanted.decay, rel=1e-3)
    assert info["loss"] < 0.05
    assert_same_update(edit, wanted)
