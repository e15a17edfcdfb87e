"""Inputs and output gradients against torch's autograd on HF's models."""

import numpy as np
import pytest
import torch
from one_batch import make_target_rows
from reference.distance import relative
from reference.models import hf_model

import jaxedit
from jaxedit.edits.edit import Dense, make_edit
from jaxedit.models.output_gradients import inputs_and_output_gradients

MODULES = {
    "gpt2": {
        "mlp/w_up": "transformer.h.{l}.mlp.c_fc",
        "mlp/w_down": "transformer.h.{l}.mlp.c_proj",
    },
    "gptj": {
        "mlp/w_up": "transformer.h.{l}.mlp.fc_in",
        "mlp/w_down": "transformer.h.{l}.mlp.fc_out",
    },
    "llama": {
        "mlp/w_gate": "model.layers.{l}.mlp.gate_proj",
        "mlp/w_up": "model.layers.{l}.mlp.up_proj",
        "mlp/w_down": "model.layers.{l}.mlp.down_proj",
    },
}
LAYERS = (1, 2, 4)  # layer 3 between them, and 5 above, have none
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "the English language"),
    jaxedit.Request("{} sings", "Bob", "a song"),
]


def torch_factors(model, hf, request, places) -> tuple[float, dict]:
    """Compute a request's mean target loss, and x and g of each place, by hooks and autograd."""
    inputs, outputs, handles = {}, {}, []
    for weight, layer in places:

        def keep(module, args, output, place=(weight, layer)):
            inputs[place] = args[0]
            output.retain_grad()
            outputs[place] = output

        name = MODULES[model.config.family][weight].format(l=layer)
        handles.append(hf.get_submodule(name).register_forward_hook(keep))
    encode = model.tokenizer.encode
    prompt = encode(request.prompt_text)
    tokens = encode(f"{request.prompt_text} {request.target_new}")
    logp_TV = torch.log_softmax(hf(torch.tensor([tokens[:-1]])).logits[0], -1)
    target = torch.tensor(tokens[len(prompt) :])
    loss = -logp_TV[len(prompt) - 1 :].gather(1, target[:, None]).mean()
    loss.backward()
    for handle in handles:
        handle.remove()
    factors = {
        place: (inputs[place][0].detach().numpy(), outputs[place].grad[0].numpy())
        for place in places
    }
    return float(loss.detach()), factors


@pytest.mark.parametrize("family", MODULES)
def test_factors_are_those_of_autograd(golden, shared, family):
    """Of every weight, at every position; a row that is padded has zeros behind its end."""
    model, hf = golden(family), hf_model(shared / "golden" / family)
    places = tuple((weight, layer) for weight in MODULES[family] for layer in LAYERS)
    loss, factors = inputs_and_output_gradients(model, places, make_target_rows(model, REQUESTS))
    losses = []
    for i, request in enumerate(REQUESTS):
        expected_loss, expected = torch_factors(model, hf, request, places)
        losses.append(expected_loss)
        for place in places:
            x_TF, g_TD = (np.asarray(array[i]) for array in factors[place])
            expected_x_TF, expected_g_TD = expected[place]
            T = len(expected_x_TF)
            assert relative(x_TF[:T], expected_x_TF) <= 1e-5, (place, i)
            assert relative(len(REQUESTS) * g_TD[:T], expected_g_TD) <= 1e-4, (place, i)
            assert not np.any(g_TD[T:])
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_factors_are_those_of_the_edited_model(golden, shared):
    """Their sum over positions is the gradient that torch has of the weight itself."""
    model, rng = golden("llama"), np.random.default_rng(0)
    shape = model.base["mlp/w_gate"].shape[1:]
    change = 0.1 * rng.standard_normal(shape, np.float32)
    edited = jaxedit.apply(model, make_edit(model, [Dense("mlp/w_gate", 2, change)]))
    place = ("mlp/w_gate", 2)
    _, factors = inputs_and_output_gradients(
        edited, (place,), make_target_rows(edited, REQUESTS[:1])
    )
    x_TD, g_TF = (np.asarray(array[0]) for array in factors[place])

    hf = hf_model(shared / "golden" / "llama")
    weight = hf.get_submodule(MODULES["llama"]["mlp/w_gate"].format(l=2)).weight
    with torch.no_grad():
        weight += torch.tensor(change.T)
    torch_factors(model, hf, REQUESTS[0], ())
    assert relative(x_TD.T @ g_TF, weight.grad.numpy().T) <= 1e-4
