"""Keys and values at subjects against HF torch, whatever they are packed with; templates share
their first tokens.
"""

import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit.solving import keys as key_module
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.packed_prompts import pack_prompts

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


def seen(
    hf_model, backend, module: str, prompt: str, subject: str
) -> tuple[np.ndarray, np.ndarray]:
    """The input and output of a module at the subject's last token."""
    before, after = prompt.split("{}")
    at = len(backend.encode(before + subject).ids) - 1
    found = []

    def look(module, inputs, output):
        found.extend(
            (inputs[0][0, at], (output[0] if isinstance(output, tuple) else output)[0, at])
        )

    hook = hf_model.get_submodule(module).register_forward_hook(look)
    with torch.no_grad():
        hf_model(torch.tensor([backend.encode(before + subject + after).ids]))
    hook.remove()
    return found[0].numpy(), found[1].numpy()


@pytest.mark.parametrize("family", MLPS)
@pytest.mark.parametrize("many", [16, 2], ids=["rows of one length", "rows of many"])
def test_keys_and_values_are_those_of_torch(golden, shared, monkeypatch, family, many):
    monkeypatch.setattr(key_module, "MANY", many)
    model = golden(family)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden" / family, dtype=torch.float32
    ).eval()
    backend = model.tokenizer.backend
    questions = pack_prompts(model, REQUESTS, GROUPS, "group_means")
    assert questions.n_shared_C.max() >= 4  # the templates' own tokens
    assert questions.token_GBT.shape[2] == (key_module.KEY_ROW_TOKENS if many == 2 else 24)
    pooled_NF, bare_NF = compute_keys(model, questions, 3)
    mlp_ND, residual_ND = (
        compute_values(model, questions, 3, "mlp"),
        compute_values(model, questions, 4),
    )
    for n, request in enumerate(REQUESTS):
        of_template = [
            seen(
                hf_model,
                backend,
                MLPS[family].format(l=3),
                template.format(request.prompt),
                request.subject,
            )
            for group in GROUPS
            for template in group
        ]
        key_RF = np.stack([key_F for key_F, _ in of_template])
        np.testing.assert_allclose(bare_NF[n], key_RF[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            pooled_NF[n], np.array([0.5, 0.25, 0.25]) @ key_RF, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(mlp_ND[n], of_template[0][1], rtol=1e-4, atol=1e-5)
        residual_D = seen(
            hf_model, backend, BLOCKS[family].format(l=4), request.prompt, request.subject
        )[1]
        np.testing.assert_allclose(residual_ND[n], residual_D, rtol=1e-4, atol=1e-4)


def test_company_changes_nothing(golden, monkeypatch):
    """Alone, with others, and in more batches than one; a plain mean; a bare prompt that is no
    template.
    """
    model = golden("llama")
    groups = (("I am a little. {}", "So. {}"),)
    together = compute_keys(model, pack_prompts(model, REQUESTS, groups, "mean"), 2)
    alone = [
        compute_keys(model, pack_prompts(model, [request], groups, "mean"), 2)
        for request in REQUESTS
    ]
    for i in range(2):
        np.testing.assert_allclose(
            together[i], np.concatenate([found[i] for found in alone]), rtol=1e-4, atol=1e-5
        )
    monkeypatch.setattr(key_module, "ROWS_AT_ONCE", 4)
    questions = pack_prompts(model, REQUESTS, groups, "mean")
    assert len(questions.token_GBT) > 1
    for i in range(2):
        np.testing.assert_allclose(
            compute_keys(model, questions, 2)[i], together[i], rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(
        compute_values(model, questions, 3),
        compute_values(model, pack_prompts(model, REQUESTS, (("{}",),), "mean"), 3),
        rtol=1e-4,
    )


def test_a_subject_longer_than_the_context(golden):
    long = jaxedit.Request("{} lives in", "Bob and " * 200 + "Ann", "Paris")
    with pytest.raises(
        ValueError,
        match=r"the request .* in its templates has \d+ tokens, more than the 256 positions",
    ):
        pack_prompts(golden("gpt2"), [long], GROUPS, "mean")
