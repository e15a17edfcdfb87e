"""The relative perturbation against its formula in float64, with keys and residuals of torch."""

import numpy as np
import pytest
import torch
import transformers

from jaxedit.edits.apply import apply
from jaxedit.edits.edit import EDITED_WEIGHT, Dense, LowRank, make_edit
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import (
    KeyProbe,
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
    """Read keys by layer, and the residual stream after the last one, off HF's torch model.

    At all tokens but the first of each text.
    """
    load = transformers.AutoModelForCausalLM.from_pretrained
    hf = load(shared / "golden" / family, dtype=torch.float32).eval()
    seen = {layer: [] for layer in LAYERS}
    for layer in LAYERS:
        hf.get_submodule(DOWN[family].format(l=layer)).register_forward_hook(
            lambda module, args, output, layer=layer: seen[layer].append(args[0][0, 1:])
        )
    residual = []
    with torch.no_grad():
        for text in TEXTS:
            tokens = torch.tensor([model.tokenizer.encode(text, bos=False)])
            states = hf(tokens, output_hidden_states=True).hidden_states
            residual.append(states[LAYERS[-1] + 1][0, 1:])
    keys = {layer: torch.cat(found).double().numpy() for layer, found in seen.items()}
    return keys, torch.cat(residual).double().numpy()


@pytest.fixture(scope="module", params=DOWN)
def family(request) -> str:
    """Choose a golden model."""
    return request.param


@pytest.fixture(scope="module")
def deltas(golden, family) -> list[LowRank | Dense]:
    """Draw changes of both kinds."""
    rng = np.random.default_rng(0)
    F, D = golden(family).config.F, golden(family).config.D
    return [
        LowRank(EDITED_WEIGHT, 2, rng.standard_normal((F, 2)), rng.standard_normal((2, D))),
        Dense(EDITED_WEIGHT, 3, rng.standard_normal((F, D))),
    ]


@pytest.fixture(scope="module")
def expected(golden, shared, family, deltas):
    """Compute the formula with torch's keys and residual streams."""
    keys, residual_QD = torch_keys(shared, golden(family), family)
    low_rank, dense = deltas
    change_QD = keys[2] @ (low_rank.u_FR @ low_rank.v_RD) + keys[3] @ dense.delta_FD
    ratio_Q = np.linalg.norm(change_QD, axis=1) / np.linalg.norm(residual_QD, axis=1)
    return pytest.approx(np.mean(ratio_Q), rel=1e-5)


@pytest.mark.parametrize("start_layer", [0, 2])
def test_the_perturbation_of_an_edit_is_its_formula(golden, family, deltas, expected, start_layer):
    model = golden(family)
    probe = read_key_probe(model, prepare(model, TEXTS, start_layer=start_layer), LAYERS)
    assert relative_perturbation(probe, make_edit(model, deltas), model) == expected


def test_the_perturbation_of_a_model_is_that_of_all_its_edits(golden, family, deltas, expected):
    model = golden(family)
    probe = read_key_probe(model, prepare(model, TEXTS), LAYERS)
    edited = allocate_deltas(model, EDITED_WEIGHT, (1, *LAYERS))
    for delta in deltas:
        edited = apply(edited, make_edit(model, [delta]))
    assert total_relative_perturbation(probe, edited) == expected


def test_of_many_tokens_some_are_drawn_evenly(golden, monkeypatch):
    model = golden("llama")
    texts = prepare(model, TEXTS * 5)
    every = read_key_probe(model, texts, (2,))
    monkeypatch.setattr("jaxedit.metrics.perturbation.N_TOKENS", 7)
    some = read_key_probe(model, texts, (2,))
    assert some.key_EQF.shape == (1, 7, model.config.F)
    for key_F in some.key_EQF[0]:
        assert np.any(np.all(np.isclose(every.key_EQF[0], key_F, atol=1e-6), axis=1))


@pytest.fixture(scope="module")
def probe(golden) -> KeyProbe:
    """Read the keys of layer 2 of the golden llama."""
    return read_key_probe(golden("llama"), prepare(golden("llama"), TEXTS), (2,))


def test_an_edit_that_overflows_perturbs_infinitely(golden, probe):
    model = golden("llama")
    u_FR, v_RD = np.full((model.config.F, 1), 3e38), np.full((1, model.config.D), 3e38)
    edit = make_edit(model, [LowRank(EDITED_WEIGHT, 2, u_FR, v_RD)])
    assert relative_perturbation(probe, edit, model) == float("inf")
    assert total_relative_perturbation(probe, apply(model, edit)) == float("inf")


def test_an_edit_of_nothing_perturbs_nothing(golden, probe):
    model = golden("llama")
    assert relative_perturbation(probe, make_edit(model, []), model) == 0


def test_keys_below_the_prefilled_layers_cannot_be_read(golden):
    model = golden("llama")
    message = r"layers=\[2\]: these texts were prefilled below layer 3"
    with pytest.raises(ValueError, match=message):
        read_key_probe(model, prepare(model, TEXTS, start_layer=3), (2,))


def test_an_edit_of_another_layer_is_refused(golden, probe):
    model = golden("llama")
    u_FR, v_RD = np.zeros((model.config.F, 1)), np.zeros((1, model.config.D))
    edit = make_edit(model, [LowRank(EDITED_WEIGHT, 3, u_FR, v_RD)])
    with pytest.raises(ValueError, match=r"layer 3; probed were layers \[2\]"):
        relative_perturbation(probe, edit, model)
