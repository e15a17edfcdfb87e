"""Keys and values at subjects against HF torch, whatever they are packed with."""

import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit.solving import packed_prompts
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.packed_prompts import pack_prompts
from jaxedit.solving.site import Site

GROUPS = (("{}",), ("I am a little. {}", "The other day I was talking to. {}"))
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "English"),
    jaxedit.Request("{}", "Honolulu", "BBC"),
    jaxedit.Request(
        "The very long question about where in the world {} may have been born is", "Bob", "Iran"
    ),
    jaxedit.Request("The mother tongue of {} is", "Ann", "English"),
]
MLPS = {
    "gpt2": "transformer.h.{l}.mlp.c_proj",
    "gptj": "transformer.h.{l}.mlp.fc_out",
    "llama": "model.layers.{l}.mlp.down_proj",
}
BLOCKS = {"gpt2": "transformer.h.{l}", "gptj": "transformer.h.{l}", "llama": "model.layers.{l}"}


def input_and_output(
    hf_model, backend, module: str, prompt: str, subject: str
) -> tuple[np.ndarray, np.ndarray]:
    """Record the input and output of a module at the subject's last token."""
    before, after = prompt.split("{}")
    position = len(backend.encode(before + subject).ids) - 1
    seen = []

    def look(module, inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        seen.extend((inputs[0][0, position], output[0, position]))

    hook = hf_model.get_submodule(module).register_forward_hook(look)
    with torch.no_grad():
        hf_model(torch.tensor([backend.encode(before + subject + after).ids]))
    hook.remove()
    return seen[0].numpy(), seen[1].numpy()


@pytest.mark.parametrize("family", MLPS)
@pytest.mark.parametrize("many", [16, 2], ids=["rows of one length", "rows of many"])
def test_keys_and_values_are_those_of_torch(golden, shared, monkeypatch, family, many):
    monkeypatch.setattr(packed_prompts, "MANY_REQUESTS", many)
    model = golden(family)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden" / family, dtype=torch.float32
    ).eval()
    backend = model.tokenizer.backend
    packed = pack_prompts(model, REQUESTS, GROUPS, "group_means")
    assert packed.n_shared_C.max() >= 4  # the templates' own tokens
    assert packed.token_GBT.shape[2] == (packed_prompts.KEY_ROW_TOKENS if many == 2 else 24)
    pooled_IF, bare_IF = compute_keys(model, packed, 3)
    mlp_ID, residual_ID = (
        compute_values(model, packed, 3, Site.MLP),
        compute_values(model, packed, 4),
    )
    mlp, block = MLPS[family].format(l=3), BLOCKS[family].format(l=4)
    templates = [template for group in GROUPS for template in group]
    for i, request in enumerate(REQUESTS):
        in_templates = [
            input_and_output(
                hf_model, backend, mlp, template.format(request.prompt), request.subject
            )
            for template in templates
        ]
        key_CF = np.stack([key_F for key_F, _ in in_templates])
        wanted_F = np.array([0.5, 0.25, 0.25]) @ key_CF
        np.testing.assert_allclose(bare_IF[i], key_CF[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(pooled_IF[i], wanted_F, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mlp_ID[i], in_templates[0][1], rtol=1e-4, atol=1e-5)
        _, residual_D = input_and_output(hf_model, backend, block, request.prompt, request.subject)
        np.testing.assert_allclose(residual_ID[i], residual_D, rtol=1e-4, atol=1e-4)


def test_keys_do_not_depend_on_what_they_are_packed_with(golden, monkeypatch):
    """Alone, with others, and in more batches than one; the bare prompt is no template here."""
    model = golden("llama")
    groups = (("I am a little. {}", "So. {}"),)
    together = compute_keys(model, pack_prompts(model, REQUESTS, groups, "mean"), 2)
    alone = [
        compute_keys(model, pack_prompts(model, [request], groups, "mean"), 2)
        for request in REQUESTS
    ]
    monkeypatch.setattr(packed_prompts, "ROWS_PER_BATCH", 4)
    packed = pack_prompts(model, REQUESTS, groups, "mean")
    assert len(packed.token_GBT) > 1
    in_batches = compute_keys(model, packed, 2)
    for kind in range(2):  # pooled, bare
        one_by_one = np.concatenate([found[kind] for found in alone])
        np.testing.assert_allclose(together[kind], one_by_one, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(in_batches[kind], together[kind], rtol=1e-4, atol=1e-5)


def test_values_do_not_depend_on_what_they_are_packed_with(golden, monkeypatch):
    model = golden("llama")
    bare_only = pack_prompts(model, REQUESTS, (("{}",),), "mean")
    monkeypatch.setattr(packed_prompts, "ROWS_PER_BATCH", 4)
    packed = pack_prompts(model, REQUESTS, (("I am a little. {}", "So. {}"),), "mean")
    assert len(packed.token_GBT) > 1
    found_ID, wanted_ID = (compute_values(model, prompts, 3) for prompts in (packed, bare_only))
    np.testing.assert_allclose(found_ID, wanted_ID, rtol=1e-4)
