"""ENCORE's two stops against its loop in plain PyTorch, on the golden llama and a scaled head."""

import functools
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from reference import encore as reference
from reference.distance import relative
from safetensors.numpy import load_file, save_file

import jaxedit
from jaxedit.editors import encore, memit, rome
from jaxedit.solving.site import Site
from jaxedit.solving.value import optimise_values

LAYER = 4
PROMPT, SUBJECT = "They all spoke of {}", "Danielle Darrieux"
COUNTS = ("five_tokens", "all_templates")
PUBLISHED: dict[str, Any] = dict(v_num_grad_steps=25, v_lr=0.5, clamp_norm_factor=4.0)
FREE: dict[str, Any] = dict(
    v_num_grad_steps=40, v_lr=0.5, v_weight_decay=0.0, kl_factor=0.0, clamp_norm_factor=4.0
)


@pytest.fixture(scope="module")
def loud(shared, tmp_path_factory):
    """Write the golden llama with its head times 5, so that a loss of 0.05 can be reached."""
    folder = tmp_path_factory.mktemp("loud")
    shutil.copytree(shared / "golden" / "llama", folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = 5 * tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@functools.cache
def load(folder) -> tuple:
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return jaxedit.load(str(folder)), hf_model.requires_grad_(False)


def both(folder, templates, target: str, count: str, **hyper):
    """Optimise one target here and in torch."""
    model, hf_model = load(folder)
    request = jaxedit.Request(PROMPT, SUBJECT, target)
    mine = encore.Hyper(**hyper, prob_cutoff_count=count)
    found = optimise_values(model, [request], templates, LAYER, mine, Site.RESIDUAL)
    theirs = {"v_weight_decay": 0.5, "kl_factor": 0.0625, **hyper}
    backend, module = model.tokenizer.backend, f"model.layers.{LAYER}"
    wanted = reference.optimise(hf_model, backend, module, request, templates, theirs, count)
    return found, wanted


@pytest.fixture(scope="module")
def templates(golden_expected):
    cases, _ = golden_expected("llama")
    groups = cases["memit_context_templates"]
    found = tuple(template for group in groups for template in group)
    assert len(found) == 6
    return found


@pytest.mark.parametrize(("target", "cutoff"), [("the of", -2), ("and in", -12)])
def test_a_target_of_two_tokens_by_the_released_count_and_by_the_paper_s_words(
    shared, templates, target, cutoff
):
    folder, passes = shared / "golden" / "llama", {}
    for count in COUNTS:
        hyper = dict(**PUBLISHED, prob_cutoff=cutoff)
        found, wanted = both(folder, templates, target, count, **hyper)
        assert found.n_steps_I[0] == len(wanted.losses)
        assert relative(found.delta_ID[0], wanted.delta_D.numpy()) <= 1e-4
        passes[count] = len(wanted.losses)
    assert passes["five_tokens"] < passes["all_templates"] == 25


@pytest.mark.parametrize("target", ["the", "and", "in", "of"])
def test_a_loss_of_a_twentieth_stops_whatever_is_counted(loud, templates, target):
    found, wanted = both(loud, templates, target, "five_tokens", **FREE, prob_cutoff=-20)
    assert found.n_steps_I[0] == len(wanted.losses) < 20
    assert wanted.losses[-1] < 0.05 <= min(wanted.losses[:-1])
    assert found.nll_I[0] == pytest.approx(wanted.losses[-1], rel=1e-3)
    assert relative(found.delta_ID[0], wanted.delta_D.numpy()) <= 1e-4


@pytest.mark.parametrize("hyper", [memit.Hyper(**FREE), rome.Hyper(**FREE)])
def test_methods_without_a_count_stop_there_too(loud, templates, hyper):
    _, wanted = both(loud, templates, "the", "five_tokens", **FREE, prob_cutoff=None)
    model, _ = load(loud)
    request = jaxedit.Request(PROMPT, SUBJECT, "the")
    found = optimise_values(model, [request], templates, LAYER, hyper, Site.RESIDUAL)
    assert found.n_steps_I[0] == len(wanted.losses) < 20
    assert np.all(found.nll_I < 0.05)
    assert relative(found.delta_ID[0], wanted.delta_D.numpy()) <= 1e-4
