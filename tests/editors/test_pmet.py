"""PMET against plain PyTorch: optimising two vectors, and the whole update of an HF model."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from reference.multi_layer import GROUPS, LAYERS, REQUESTS, TEMPLATES, golden_moments, relative
from reference.pmet import optimise as reference
from reference.rome import _inputs_outputs

import jaxedit
from jaxedit.models import family as families
from jaxedit.solving import value
from jaxedit.solving.prompts import common_shape, to_batch, tokenise_request

MODULES = {  # the MLP's last linear layer, the attention's, the norm before the head
    "gpt2": ("transformer.h.{l}.mlp.c_proj", "transformer.h.{l}.attn.c_proj", "transformer.ln_f"),
    "gptj": ("transformer.h.{l}.mlp.fc_out", "transformer.h.{l}.attn.out_proj", "transformer.ln_f"),
    "llama": ("model.layers.{l}.mlp.down_proj", "model.layers.{l}.self_attn.o_proj", "model.norm"),
}
PUBLISHED = dict(
    v_lr=0.2, v_weight_decay=0.5, kl_factor=1.0, clamp_norm_factor=0.75, nll_loss_factor=1.0
)
SETTINGS = {
    "published": dict(v_num_grad_steps=6, **PUBLISHED),
    "every term": dict(
        v_num_grad_steps=7,
        v_lr=0.3,
        v_weight_decay=3.0,
        kl_factor=3.0,
        clamp_norm_factor=1.5,
        nll_loss_factor=0.7,
    ),
}
EASY = jaxedit.Request("The mother tongue belongs to {}", "Danielle Darrieux", "of")
LOUD = 4.0  # the final norm's factor that makes a golden model confident
EASED = dict(
    v_num_grad_steps=20,
    v_lr=0.5,
    v_weight_decay=0.5,
    kl_factor=0.01,
    clamp_norm_factor=400.0,
    nll_loss_factor=1.0,
)


@pytest.fixture(scope="module")
def torch_model(shared):
    """A function: family -> its golden HF model."""

    def load(family: str):
        path = shared / "golden" / family
        return transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    return load


def assert_same(found, expected) -> None:
    assert int(found.n_steps_N[0]) == expected.n_steps
    for name in ("nll", "kl", "decay"):
        value = getattr(expected, name)
        assert float(getattr(found, f"{name}_N")[0]) == pytest.approx(value, rel=1e-3, abs=1e-5), (
            name
        )
    assert relative(found.delta_ND[0], expected.delta_mlp_D.numpy()) < 1e-4
    assert relative(found.init_ND[0] + found.delta_ND[0], expected.z_D.numpy()) < 1e-4


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_vectors_are_the_references(golden, torch_model, family, setting):
    model, hyper = golden(family), SETTINGS[setting]
    mlp, attn = (name.format(l=3) for name in MODULES[family][:2])
    expected = reference(
        torch_model(family), model.tokenizer.backend, mlp, attn, REQUESTS[1], TEMPLATES, hyper
    )
    assert expected.delta_attn_D.norm() > 0.1
    settings = value.TargetHyper(**hyper, reduce_nll_when_correct=True)
    assert_same(
        value.optimise_values(
            model, REQUESTS[1:2], TEMPLATES, 3, settings, residual=False, attention=True
        ),
        expected,
    )


@pytest.mark.parametrize("family", ["gptj", "llama"])
@pytest.mark.parametrize(
    ("change", "eased", "stopped"),
    [
        ({}, True, False),  # once the target is said its term weighs a tenth
        (
            dict(kl_factor=1.0),
            True,
            False,
        ),  # and all of it again when the KL term pushes the target out
        (
            dict(kl_factor=0.0003, v_weight_decay=3.0),
            False,
            True,
        ),  # the KL term is small at once: it ends
    ],
)
def test_the_targets_term_is_eased(golden, torch_model, family, change, eased, stopped):
    hyper, base = {**EASED, **change}, golden(family).base
    model = dataclasses.replace(
        golden(family), base={**base, "final/norm_scale": base["final/norm_scale"] * LOUD}
    )
    hf_model = copy.deepcopy(torch_model(family))
    mlp, attn, final = (name.format(l=4) for name in MODULES[family])
    hf_model.get_submodule(final).weight.data *= LOUD
    expected = reference(hf_model, model.tokenizer.backend, mlp, attn, EASY, TEMPLATES, hyper)
    assert (min(expected.factors) < 0.5) == eased
    assert (expected.n_steps < hyper["v_num_grad_steps"]) == stopped
    if change.get("kl_factor") == 1.0:
        assert 1.0 in expected.factors[expected.factors.index(0.1) :]
    if stopped:
        assert expected.nll + expected.kl + expected.decay > 0.05
    settings = value.TargetHyper(**hyper, reduce_nll_when_correct=True)
    assert_same(
        value.optimise_values(
            model, [EASY], TEMPLATES, 4, settings, residual=False, attention=True
        ),
        expected,
    )


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_the_update_is_the_references(shared, golden, torch_model, family):
    """Two facts over two layers: R (K K^T + lambda C)^-1 / sqrt(layers still to write), each layer
    on top of the one before.
    """
    model, moments, hf_model = golden(family), golden_moments(shared, family), torch_model(family)
    backend, (mlp, attn, _) = model.tokenizer.backend, MODULES[family]
    requests = REQUESTS[:2]
    editor = jaxedit.make_editor(
        "pmet", layers=LAYERS, context_templates=GROUPS, v_num_grad_steps=6, mom2_update_weight=0.4
    )
    edit, _, info = editor.edit(
        model, requests, editor.init(model, jaxedit.Stats.from_moments(moments, 1000))
    )
    names = [name.format(l=LAYERS[-1]) for name in (mlp, attn)]
    loop = dict(v_num_grad_steps=6, **PUBLISHED)
    z_ND = torch.stack(
        [reference(hf_model, backend, *names, request, TEMPLATES, loop).z_D for request in requests]
    ).double()
    weight_R = torch.tensor([1 / 2, 1 / 4, 1 / 4], dtype=torch.float64)
    changes = edit.dense()
    assert len(changes) == len(LAYERS)
    for i, layer in enumerate(LAYERS):
        keys, now = [], []
        for request in requests:
            prompts = [template.format(request.prompt) for template in TEMPLATES]
            key_RF, _ = _inputs_outputs(
                hf_model, backend, mlp.format(l=layer), prompts, request.subject
            )
            keys.append(weight_R @ key_RF.double())
            now.append(
                _inputs_outputs(hf_model, backend, names[0], [request.prompt], request.subject)[1][
                    0
                ].double()
            )
        key_FN = torch.stack(keys, dim=1)
        residual_DN = (z_ND - torch.stack(now)).T / np.sqrt(len(LAYERS) - i)
        c_FF = torch.tensor(moments[layer])
        wanted_DF = residual_DN @ key_FN.T @ torch.inverse(key_FN @ key_FN.T + 0.4 * c_FF)
        name = mlp.format(l=layer) + ".weight"
        assert relative(changes[name], wanted_DF.numpy()) < 1e-4, name
        hf_model.get_parameter(name).data += torch.tensor(changes[name])
    assert info["solve_residual"] < 1e-4


@pytest.mark.parametrize("family", families.family_names())
def test_attention_and_mlp_make_up_the_block(tiny_checkpoint, family):
    """PMET puts a block together from its parts outside of it: for every family they must give what
    the block gives.
    """
    model = jaxedit.load(str(tiny_checkpoint(family)))
    tokenised = [tokenise_request(model, REQUESTS[0], TEMPLATES)]
    shape = common_shape(tokenised)
    rows = jax.tree.map(np.asarray, to_batch(tokenised, shape, 1))
    subject = jax.jit(value._prefill, static_argnums=(2, 3))(model, rows, 1, shape).subject
    np.testing.assert_allclose(
        subject.after_attn_BD + subject.value_BD, subject.residual_BD, rtol=1e-5, atol=1e-5
    )
    rng = np.random.default_rng(0)
    added_BD = rng.standard_normal(subject.attn_BD.shape).astype(np.float32)
    passed_BD = value._attention_delta_effect(model, 1, subject.after_attn_BD, added_BD)
    back_BD = value._attention_delta_effect(model, 1, subject.after_attn_BD + added_BD, -added_BD)
    np.testing.assert_allclose(passed_BD, -back_BD, rtol=1e-4, atol=1e-4)
    assert np.array_equal(passed_BD, added_BD) == model.config.parallel
