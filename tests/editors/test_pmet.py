"""PMET against plain PyTorch: its optimisation of two vectors, and its whole update."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from reference.distance import relative
from reference.multi_layer import GROUPS, LAYERS, REQUESTS, TEMPLATES, golden_moments
from reference.pmet import optimise as reference
from reference.rome import inputs_and_outputs

import jaxedit
from jaxedit.editors import pmet
from jaxedit.models import family as families
from jaxedit.models.layers import block_at
from jaxedit.models.norms import to_residual
from jaxedit.solving.prefill import change_of_output, prefill
from jaxedit.solving.prompt_batch import common_shape, to_batch
from jaxedit.solving.prompts import tokenise_request
from jaxedit.solving.site import Site
from jaxedit.solving.value import optimise_values

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
EASY_HYPER = dict(
    v_num_grad_steps=20,
    v_lr=0.5,
    v_weight_decay=0.5,
    kl_factor=0.01,
    clamp_norm_factor=400.0,
    nll_loss_factor=1.0,
)


@pytest.fixture(scope="module")
def torch_model(shared):
    """Make a function: family -> its golden HF model."""

    def load(family: str):
        path = shared / "golden" / family
        return transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    return load


def optimised(model, request, layer: int, hyper: dict):
    """Optimise the value of one request as PMET does."""
    return optimise_values(
        model, [request], TEMPLATES, layer, pmet.Hyper(**hyper), Site.MLP_WITH_ATTENTION
    )


def assert_same(found, expected) -> None:
    assert int(found.n_steps_I[0]) == expected.n_steps
    for name in ("nll", "kl", "decay"):
        term = float(getattr(found, f"{name}_I")[0])
        assert term == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-5), name
    assert relative(found.delta_ID[0], expected.delta_mlp_D.numpy()) < 1e-4
    assert relative(found.init_ID[0] + found.delta_ID[0], expected.z_D.numpy()) < 1e-4


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_vectors_are_the_references(golden, torch_model, family, setting):
    model, hyper = golden(family), SETTINGS[setting]
    mlp, attn = (name.format(l=3) for name in MODULES[family][:2])
    expected = reference(
        torch_model(family), model.tokenizer.backend, mlp, attn, REQUESTS[1], TEMPLATES, hyper
    )
    assert expected.delta_attn_D.norm() > 0.1
    assert_same(optimised(model, REQUESTS[1], 3, hyper), expected)


@pytest.mark.parametrize("family", ["gptj", "llama"])
@pytest.mark.parametrize(
    ("change", "is_reduced", "is_stopped"),
    [
        # Once the target is said its term weighs a tenth,
        ({}, True, False),
        # and all of it again when the KL term pushes the target out.
        (dict(kl_factor=1.0), True, False),
        # Where the KL term is small at once, it ends.
        (dict(kl_factor=0.0003, v_weight_decay=3.0), False, True),
    ],
)
def test_the_targets_term_is_reduced(golden, torch_model, family, change, is_reduced, is_stopped):
    hyper, base = {**EASY_HYPER, **change}, golden(family).base
    loud = {**base, "final/norm_scale": base["final/norm_scale"] * LOUD}
    model = dataclasses.replace(golden(family), base=loud)
    hf_model = copy.deepcopy(torch_model(family))
    mlp, attn, final = (name.format(l=4) for name in MODULES[family])
    hf_model.get_submodule(final).weight.data *= LOUD
    expected = reference(hf_model, model.tokenizer.backend, mlp, attn, EASY, TEMPLATES, hyper)
    assert (min(expected.factors) < 0.5) == is_reduced
    assert (expected.n_steps < hyper["v_num_grad_steps"]) == is_stopped
    if change.get("kl_factor") == 1.0:
        assert 1.0 in expected.factors[expected.factors.index(0.1) :]
    if is_stopped:
        assert expected.nll + expected.kl + expected.decay > 0.05
    assert_same(optimised(model, EASY, 4, hyper), expected)


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_the_update_is_the_references(shared, golden, torch_model, family):
    """Two facts over two layers, each on top of the one before: R K^T (K K^T + lambda C)^-1.

    R is what is missing, divided by sqrt(layers still to write).
    """
    model, moments, hf_model = golden(family), golden_moments(shared, family), torch_model(family)
    backend, (mlp, attn, _) = model.tokenizer.backend, MODULES[family]
    requests = REQUESTS[:2]
    editor = jaxedit.make_editor(
        "pmet", layers=LAYERS, context_templates=GROUPS, v_num_grad_steps=6, mom2_update_weight=0.4
    )
    state = editor.init(model, jaxedit.Stats.from_moments(moments, 1000))
    edit, _, info = editor.edit(model, requests, state)

    z_modules = [name.format(l=LAYERS[-1]) for name in (mlp, attn)]
    loop = dict(v_num_grad_steps=6, **PUBLISHED)
    values = [
        reference(hf_model, backend, *z_modules, request, TEMPLATES, loop) for request in requests
    ]
    z_ID = torch.stack([value.z_D for value in values]).double()
    weight_C = torch.tensor([1 / 2, 1 / 4, 1 / 4], dtype=torch.float64)
    changes = edit.dense()
    assert len(changes) == len(LAYERS)
    for i, layer in enumerate(LAYERS):
        keys, now = [], []
        for request in requests:
            prompts = [template.format(request.prompt) for template in TEMPLATES]
            key_CF, _ = inputs_and_outputs(
                hf_model, backend, mlp.format(l=layer), prompts, request.subject
            )
            keys.append(weight_C @ key_CF.double())
            _, value_CD = inputs_and_outputs(
                hf_model, backend, z_modules[0], [request.prompt], request.subject
            )
            now.append(value_CD[0].double())
        key_FI = torch.stack(keys, dim=1)
        residual_DI = (z_ID - torch.stack(now)).T / np.sqrt(len(LAYERS) - i)
        system_FF = key_FI @ key_FI.T + 0.4 * torch.tensor(moments[layer])
        wanted_DF = residual_DI @ key_FI.T @ torch.inverse(system_FF)
        name = mlp.format(l=layer) + ".weight"
        assert relative(changes[name], wanted_DF.numpy()) < 1e-4, name
        hf_model.get_parameter(name).data += torch.tensor(changes[name])
    assert info["solve_residual"] < 1e-4


@pytest.mark.parametrize("family", families.family_names())
def test_attention_and_mlp_make_up_the_block(tiny_checkpoint, family):
    """The parts of a block that PMET uses by themselves give, for every family, what it gives."""
    model = jaxedit.load(str(tiny_checkpoint(family)))
    tokenised = [tokenise_request(model, REQUESTS[0], TEMPLATES)]
    shape = common_shape(tokenised)
    batch = jax.tree.map(np.asarray, to_batch(tokenised, shape, 1))
    at_fact = jax.jit(prefill, static_argnums=(2, 3))(model, batch, 1, shape).at_fact
    mlp = block_at(model, 1).mlp
    of_mlp_BD = to_residual(model.config, mlp, at_fact.value_BD)
    np.testing.assert_allclose(
        at_fact.after_attn_BD + of_mlp_BD, at_fact.residual_BD, rtol=1e-5, atol=1e-5
    )
    rng = np.random.default_rng(0)
    added_BD = rng.standard_normal(at_fact.attn_BD.shape).astype(np.float32)
    added_JBD = np.stack([np.zeros_like(added_BD), added_BD])

    def change(at_fact, added_JBD):
        return change_of_output(model, 1, Site.MLP_WITH_ATTENTION, at_fact, added_JBD)

    effect_BD = change(at_fact, added_JBD)
    attn = block_at(model, 1).attn
    moved_BD = to_residual(model.config, attn, at_fact.attn_BD + added_BD)
    moved_BD += at_fact.after_attn_BD - to_residual(model.config, attn, at_fact.attn_BD)
    there = at_fact._replace(attn_BD=at_fact.attn_BD + added_BD, after_attn_BD=moved_BD)
    np.testing.assert_allclose(effect_BD, -change(there, -added_JBD), rtol=1e-4, atol=1e-4)
    assert np.array_equal(effect_BD, added_BD) == model.config.parallel
