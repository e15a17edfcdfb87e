"""Edits of models whose MLPs' outputs reach the residual stream through a norm, or a factor.

Against plain PyTorch with hooks on whole forward passes: ROME's vector is added to what the MLP
puts out, MEMIT's to the residual stream, PMET's to what MLP and attention put out.
"""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
import torch
from reference.distance import relative
from reference.models import hf_model
from reference.multi_layer import GROUPS, REQUESTS, TEMPLATES
from reference.pmet import optimise as reference_pmet
from reference.rome import Modules, find_target, inputs_and_outputs, rome, subject_last

import jaxedit
from jaxedit.editors import pmet
from jaxedit.edits.edit import EDITED_WEIGHT, LowRank, make_edit
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import (
    read_key_probe,
    relative_perturbation,
    total_relative_perturbation,
)
from jaxedit.solving.post_norm import nearest_value
from jaxedit.solving.site import Site
from jaxedit.solving.value import optimise_values

FAMILIES = ("gemma2", "gemma3_text", "olmo2", "granite")
LAYERS = (0, 1)
DOWN, MLP, ATTN, BLOCK = (
    f"model.layers.{{l}}{part}" for part in (".mlp.down_proj", ".mlp", ".self_attn.o_proj", "")
)
HYPER = dict(
    v_num_grad_steps=6, v_lr=0.3, v_weight_decay=0.5, kl_factor=0.0625, clamp_norm_factor=0.75
)


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tiny_checkpoint):
    """Load a tiny model, and the same of transformers.

    A window is shorter than the prompts, but longer than from the subject to the target.
    """
    window = dict(sliding_window=24) if "gemma" in request.param else {}
    directory = tiny_checkpoint(request.param, **window)
    return jaxedit.load(str(directory)), hf_model(directory)


def added_to_residual(theirs, layer: int, value_CD: torch.Tensor) -> torch.Tensor:
    """Compute what MLP outputs add to the residual stream, in float64."""
    block = theirs.get_submodule(BLOCK.format(l=layer))
    if not hasattr(block, "post_feedforward_layernorm"):
        return value_CD.double() * theirs.config.residual_multiplier
    norm = block.post_feedforward_layernorm
    scale_D = norm.weight.double() + (1.0 if "gemma" in theirs.config.model_type else 0.0)
    square_C1 = value_CD.double().pow(2).mean(-1, keepdim=True)
    return value_CD.double() * scale_D / torch.sqrt(square_C1 + theirs.config.rms_norm_eps)


def nearest(theirs, layer: int, value_D: torch.Tensor, residual_D: torch.Tensor) -> np.ndarray:
    """Find the value of the same length that arrives nearest, by SciPy's search for nu."""
    if not hasattr(theirs.get_submodule(BLOCK.format(l=layer)), "post_feedforward_layernorm"):
        return value_D.double().numpy() + residual_D.numpy() / theirs.config.residual_multiplier
    m_D = value_D.double().numpy()
    unit_D = added_to_residual(theirs, layer, value_D)
    a_D = unit_D.numpy() / m_D  # A, where no coordinate of m is zero
    wanted_D = a_D * (unit_D + residual_D).numpy()

    def excess(nu: float) -> float:
        return float(np.linalg.norm(wanted_D / (a_D**2 + nu)) - np.linalg.norm(m_D))

    lowest = -np.min(a_D**2)
    nu = scipy.optimize.brentq(excess, lowest + 1e-9, lowest + 1e4, xtol=1e-14, rtol=1e-14)
    return wanted_D / (a_D**2 + nu)


def test_rome_is_the_references(models):
    model, theirs = models
    template_list = list(TEMPLATES)
    editor = jaxedit.make_editor(
        "rome", layer=1, mom2_adjustment=False, context_templates=template_list, **HYPER
    )
    edit, _, info = editor.edit(model, REQUESTS[:1], editor.init(model, None))
    hyper = {"layer": 1, **HYPER}
    found = rome(theirs, model.tokenizer.backend, Modules(MLP, DOWN), REQUESTS[0], TEMPLATES, hyper)
    expected_DF = torch.outer(found.v_D, found.u_F).numpy()
    assert relative(edit.dense()[DOWN.format(l=1) + ".weight"], expected_DF) < 1e-4
    assert info["loss_nll_nats"] == pytest.approx(found.nll, rel=1e-3)


def test_memit_writes_what_arrives_nearest(models):
    model, theirs = models
    requests, backend, last = REQUESTS[:2], model.tokenizer.backend, LAYERS[-1]
    editor = jaxedit.make_editor(
        "memit",
        layers=LAYERS,
        context_templates=GROUPS,
        mom2_adjustment=False,
        mom2_update_weight=0.4,
        **HYPER,
    )
    edit, _, info = editor.edit(model, requests, editor.init(model, None))

    # z, optimised in the residual stream after the last layer
    z_ID = []
    for request in requests:
        prompts = [template.format(request.prompt) for template in TEMPLATES]
        block = BLOCK.format(l=last)
        found, _ = find_target(theirs, backend, block, request, prompts, HYPER, subject_last)
        z_ID.append(found.double())

    weight_C, changes = torch.tensor([1 / 2, 1 / 4, 1 / 4], dtype=torch.float64), edit.dense()
    for i, layer in enumerate(LAYERS):
        keys, wanted = [], []
        for request, z_D in zip(requests, z_ID, strict=True):
            prompts = [template.format(request.prompt) for template in TEMPLATES]
            down = DOWN.format(l=layer)
            key_CF, value_CD = inputs_and_outputs(theirs, backend, down, prompts, request.subject)
            keys.append(weight_C @ key_CF.double())
            block = BLOCK.format(l=last)
            _, now_CD = inputs_and_outputs(
                theirs, backend, block, [request.prompt], request.subject
            )
            missing_D = (z_D - now_CD[0].double()) / (len(LAYERS) - i)
            written_D = nearest(theirs, layer, value_CD[0], missing_D)
            wanted.append(torch.tensor(written_D) - value_CD[0].double())
        key_FI, wanted_DI = torch.stack(keys, dim=1), torch.stack(wanted, dim=1)
        system_FF = key_FI @ key_FI.T + 0.4 * torch.eye(len(key_FI), dtype=torch.float64)
        expected_DF = wanted_DI @ key_FI.T @ torch.inverse(system_FF)
        name = DOWN.format(l=layer) + ".weight"
        assert relative(changes[name], expected_DF.numpy()) < 1e-4, name
        theirs.get_parameter(name).data += torch.tensor(changes[name])
    for name, change in changes.items():
        theirs.get_parameter(name).data -= torch.tensor(change)
    assert 0 < info["z_miss"] < 1


def test_pmets_vectors_are_the_references(models):
    model, theirs = models
    hyper = dict(HYPER, kl_factor=1.0, nll_loss_factor=1.0)
    mlp, attn = DOWN.format(l=1), ATTN.format(l=1)
    expected = reference_pmet(
        theirs, model.tokenizer.backend, mlp, attn, REQUESTS[1], TEMPLATES, hyper
    )
    site = Site.MLP_WITH_ATTENTION
    found = optimise_values(model, [REQUESTS[1]], TEMPLATES, 1, pmet.Hyper(**hyper), site)
    assert expected.delta_attn_D.norm() > 0.1
    assert relative(found.delta_ID[0], expected.delta_mlp_D.numpy()) < 1e-4
    assert float(found.nll_I[0]) == pytest.approx(expected.nll, rel=1e-3)


def test_the_perturbation_is_of_what_arrives(models):
    model, theirs = models
    texts = [" The mother tongue of the author", " What is the capital of that country"]
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        theirs.get_submodule(DOWN.format(l=layer)).register_forward_hook(
            lambda module, args, output, layer=layer: seen.setdefault(f"key {layer}", []).append(
                args[0][0, 1:].double()
            )
        )
        for layer in LAYERS
    ]
    with torch.no_grad():
        for text in texts:
            tokens = torch.tensor([model.tokenizer.encode(text, bos=False)])
            states = theirs(tokens, output_hidden_states=True).hidden_states
            seen.setdefault("residual", []).append(states[LAYERS[-1] + 1][0, 1:].double())
    for hook in hooks:
        hook.remove()

    rng = np.random.default_rng(0)
    F, D = model.config.F, model.config.D
    deltas = [
        LowRank(EDITED_WEIGHT, l, rng.standard_normal((F, 1)), rng.standard_normal((1, D)))
        for l in LAYERS
    ]
    moved_QD = torch.zeros(1)
    for delta in deltas:
        key_QF = torch.cat(seen[f"key {delta.layer}"])
        w_DF = theirs.get_parameter(DOWN.format(l=delta.layer) + ".weight").double()
        change_QD = key_QF @ torch.tensor(delta.u_FR @ delta.v_RD)
        before, after = (
            added_to_residual(theirs, delta.layer, key_QF @ w_DF.T + change)
            for change in (torch.zeros(1), change_QD)
        )
        moved_QD = moved_QD + after - before
    ratio_Q = moved_QD.norm(dim=-1) / torch.cat(seen["residual"]).norm(dim=-1)
    expected = pytest.approx(float(ratio_Q.mean()), rel=1e-4)
    probe = read_key_probe(model, prepare(model, texts), LAYERS)
    edit = make_edit(model, deltas)
    assert relative_perturbation(probe, edit, model) == expected
    assert total_relative_perturbation(probe, jaxedit.apply(model, edit)) == expected


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    """Read a decoder with post-norms, whose output does not depend on its input's length."""
    read = jaxedit.load(str(tiny_checkpoint("olmo2"))).config
    return dataclasses.replace(read, eps=1e-12)


def arrives(config, scale_D: np.ndarray, value_ID: np.ndarray) -> np.ndarray:
    """Normalise in float64."""
    return scale_D * value_ID / np.sqrt(np.mean(value_ID**2, -1, keepdims=True) + config.eps)


@pytest.mark.parametrize("least", [None, 0.0, 1e-9])
@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_no_value_arrives_nearer(config, size, least):
    """Neither any that SciPy finds, from wherever it starts, nor where a coordinate is cut off."""
    rng = np.random.default_rng(0)
    scale_D, value_1D = rng.standard_normal(6), rng.standard_normal((1, 6))
    scale_D[2] = scale_D[2] if least is None else least
    aim_1D = arrives(config, scale_D, value_1D) + size * rng.standard_normal((1, 6))

    def distance(value_D) -> float:
        return float(np.sum((arrives(config, scale_D, value_D[None]) - aim_1D) ** 2))

    residual_1D = aim_1D - arrives(config, scale_D, value_1D)
    found_1D = nearest_value(config, scale_D, value_1D, residual_1D)
    starts = [found_1D[0], *rng.standard_normal((10, 6))]
    best = min(scipy.optimize.minimize(distance, start, tol=1e-12).fun for start in starts)
    assert distance(found_1D[0]) <= best * (1 + 1e-4) + 1e-10
    assert np.linalg.norm(found_1D) == pytest.approx(np.linalg.norm(value_1D), rel=1e-6)


def test_a_small_change_is_that_of_the_jacobians_pseudo_inverse(config):
    rng = np.random.default_rng(1)
    scale_D, value_1D = rng.standard_normal(6) + 3, rng.standard_normal((1, 6))
    residual_1D = 1e-5 * rng.standard_normal((1, 6))
    m_D, rms = value_1D[0], np.sqrt(np.mean(value_1D**2) + config.eps)
    jacobian_DD = np.diag(scale_D / rms) @ (np.eye(6) - np.outer(m_D, m_D) / (6 * rms**2))
    expected_D = np.linalg.pinv(jacobian_DD, rcond=1e-3) @ residual_1D[0]
    found_1D = nearest_value(config, scale_D, value_1D, residual_1D) - value_1D
    assert relative(found_1D[0], expected_D) < 1e-3
