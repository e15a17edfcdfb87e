"""The relative perturbation against its formula in float64, with keys and hidden states read off
HF's torch model.
"""

import numpy as np
import pytest
import torch
import transformers

from jaxedit.edits.edit import EDITED_WEIGHT, Dense, LowRank, apply, make_edit
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import (
    read_key_probe,
    relative_perturbation,
    total_relative_perturbation,
)
from jaxedit.models.model import allocate_deltas

TEXTS = [
    " The mother tongue of the author",
    "What is the capital",
    "Once upon a time there was a girl who lived in the forest",
]
DOWN = {"gpt2": "transformer.h.{l}.mlp.c_proj", "llama": "model.layers.{l}.mlp.down_proj"}
LAYERS = (2, 3)


def torch_keys(shared, model, family: str) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Keys by layer, and the residual stream after the last one, at all tokens but the first of
    each text.
    """
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden" / family, dtype=torch.float32
    ).eval()
    seen = {layer: [] for layer in LAYERS}
    for layer in LAYERS:
        hf.get_submodule(DOWN[family].format(l=layer)).register_forward_hook(
            lambda module, args, output, layer=layer: seen[layer].append(args[0][0, 1:])
        )
    residual = []
    with torch.no_grad():
        for text in TEXTS:
            tokens = torch.tensor([model.tokenizer.encode(text, bos=False)])
            residual.append(
                hf(tokens, output_hidden_states=True).hidden_states[LAYERS[-1] + 1][0, 1:]
            )
    return {layer: torch.cat(found).double().numpy() for layer, found in seen.items()}, torch.cat(
        residual
    ).double().numpy()


@pytest.mark.parametrize("lowest", [0, 2])
@pytest.mark.parametrize("family", DOWN)
def test_the_formula(golden, shared, family, lowest):
    model, rng = golden(family), np.random.default_rng(0)
    F, D = model.config.F, model.config.D
    deltas = [
        LowRank(EDITED_WEIGHT, 2, rng.standard_normal((F, 2)), rng.standard_normal((2, D))),
        Dense(EDITED_WEIGHT, 3, rng.standard_normal((F, D))),
    ]
    probes = read_key_probe(model, prepare(model, TEXTS, start_layer=lowest), LAYERS)
    edit = make_edit(model, deltas)
    keys, residual_TD = torch_keys(shared, model, family)
    push_TD = keys[2] @ (deltas[0].u_FR @ deltas[0].v_RD) + keys[3] @ deltas[1].delta_FD
    wanted = np.mean(np.linalg.norm(push_TD, axis=1) / np.linalg.norm(residual_TD, axis=1))
    assert relative_perturbation(probes, edit) == pytest.approx(wanted, rel=1e-5)
    one_by_one = allocate_deltas(model, EDITED_WEIGHT, (1, *LAYERS))
    for delta in deltas:
        one_by_one = apply(one_by_one, make_edit(model, [delta]))
    assert total_relative_perturbation(probes, one_by_one) == pytest.approx(wanted, rel=1e-5)


def test_of_many_tokens_some_are_drawn_evenly(golden, monkeypatch):
    model = golden("llama")
    texts = prepare(model, TEXTS * 5)
    every = read_key_probe(model, texts, (2,))
    monkeypatch.setattr("jaxedit.metrics.perturbation.N_TOKENS", 7)
    some = read_key_probe(model, texts, (2,))
    assert some.key_ETF.shape == (1, 7, model.config.F)
    assert all(
        np.any(np.all(np.isclose(every.key_ETF[0], key_F, atol=1e-6), axis=1))
        for key_F in some.key_ETF[0]
    )


def test_an_edit_that_overflows_pushes_without_limit(golden):
    model = golden("llama")
    probes = read_key_probe(model, prepare(model, TEXTS), (2,))
    huge = LowRank(
        EDITED_WEIGHT, 2, np.full((model.config.F, 1), 3e38), np.full((1, model.config.D), 3e38)
    )
    edit = make_edit(model, [huge])
    assert (
        relative_perturbation(probes, edit)
        == total_relative_perturbation(probes, apply(model, edit))
        == float("inf")
    )
    assert relative_perturbation(probes, make_edit(model, [])) == 0


def test_what_it_cannot_be_measured_for(golden):
    model = golden("llama")
    with pytest.raises(ValueError, match=r"layers=\[2\]: these texts were begun at layer 3"):
        read_key_probe(model, prepare(model, TEXTS, start_layer=3), (2,))
    probes = read_key_probe(model, prepare(model, TEXTS), (2,))
    delta = LowRank(EDITED_WEIGHT, 3, np.zeros((model.config.F, 1)), np.zeros((1, model.config.D)))
    with pytest.raises(ValueError, match=r"layer 3; probed were layers \[2\]"):
        relative_perturbation(probes, make_edit(model, [delta]))
