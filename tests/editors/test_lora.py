"""LoRA against the peft library, trained by torch's Adam from the same factors."""

from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from reference.distance import relative
from reference.fine_tuning import fine_tune
from reference.models import hf_model

import jaxedit
from jaxedit.editors.lora import draw_factors
from jaxedit.edits.edit import LowRank
from jaxedit.solving.fine_tuning import generator_of

REQUESTS = [
    jaxedit.Request("{} lives in", "Ann", "Paris"),
    jaxedit.Request("The mother tongue of {} is", "Bob", "the English language"),
    jaxedit.Request("{} sings", "Tim", "a song"),
]
PLACES = {
    "gpt2": (("mlp/w_up", "mlp/w_down"), (2, 4)),
    "gptj": (("mlp/w_down",), (3,)),
    "llama": (("mlp/w_gate", "mlp/w_up", "mlp/w_down"), (2,)),
}


@pytest.mark.parametrize("family", PLACES)
def test_an_edit_is_that_of_peft(shared, golden, family):
    weights, layers = PLACES[family]
    editor = jaxedit.make_editor(
        "lora",
        weights=weights,
        layers=layers,
        r=3,
        lora_alpha=7.0,
        lr=5e-3,
        epochs=4,
        minibatch=2,
        seed=3,
    )
    model, hyper = golden(family), editor.hyper
    made, _, info = editor.edit(model, REQUESTS, editor.init(model, None))
    assert all(isinstance(delta, LowRank) and delta.u_FR.shape[1] == 3 for delta in made.deltas)

    # peft's modules, with the A that was drawn here
    folder = shared / "golden" / family
    name_of = {
        (weight, layer): model.metadata.tensor_names[weight][0].format(l=layer)
        for weight in weights
        for layer in layers
    }
    modules = [name.removesuffix(".weight") for name in name_of.values()]
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=modules, fan_in_fan_out=family == "gpt2"
    )
    adapted: Any = peft.get_peft_model(hf_model(folder, torch.float64), config).double()
    adapted.eval()
    rng = generator_of(hyper.seed, REQUESTS)
    factors, parameters, layer_of = draw_factors(hyper, model, rng), [], {}
    for (weight, layer), name in name_of.items():
        module: Any = adapted.base_model.model.get_submodule(name.removesuffix(".weight"))
        own_A, own_B = module.lora_A["default"].weight, module.lora_B["default"].weight
        a_FR = np.asarray(factors[weight].a_EFR[layers.index(layer)])
        assert np.abs(a_FR).max() <= 1 / np.sqrt(len(a_FR))  # as peft draws its own
        assert own_A.detach().abs().max().item() == pytest.approx(np.abs(a_FR).max(), rel=0.1)
        own_A.data.copy_(torch.as_tensor(a_FR.T.copy()))
        assert not own_B.any()
        parameters += [own_A, own_B]
        layer_of[name] = module

    orders = [rng.permutation(len(REQUESTS)) for _ in range(hyper.epochs)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    losses = fine_tune(adapted, tokenizer, REQUESTS, parameters, orders, hyper.lr, 2, True)
    found = made.dense()
    assert found.keys() == layer_of.keys()
    for name, change in found.items():
        expected = layer_of[name].get_delta_weight("default").detach().numpy()
        assert relative(change, expected) <= 1e-4, name
    assert info["loss"] == pytest.approx(losses.epochs[-1], rel=1e-5)
