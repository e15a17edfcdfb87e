"""CrispEdit against its loop in plain PyTorch with the projection in NumPy, in float64."""

import numpy as np
import pytest
import torch
import transformers
from reference.distance import relative
from reference.fine_tuning import fine_tune
from reference.models import hf_model

import jaxedit
from jaxedit.solving.fine_tuning import generator_of
from jaxedit.solving.low_curvature import low_curvature_mask

REQUESTS = [
    jaxedit.Request("{} lives in", "Ann", "Paris"),
    jaxedit.Request("The mother tongue of {} is", "Bob", "the English language"),
    jaxedit.Request("{} sings", "Tim", "a song"),
]
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    "Once upon a time there was a girl.",
    "What is the capital of Italy? The capital of Italy is Rome!",
]
LAYERS = (2, 4)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_an_edit_is_that_of_the_released_formula(shared, golden, family):
    model, folder = golden(family), shared / "golden" / family
    stats = jaxedit.collect_stats(model, TEXTS, LAYERS, gradients=True)
    editor = jaxedit.make_editor(
        "crispedit", layers=LAYERS, lr=2e-3, epochs=3, minibatch=2, energy_threshold=0.6
    )
    hyper = editor.hyper
    made, _, _ = editor.edit(model, REQUESTS, editor.init(model, stats))

    # the same in torch
    hf, tokenizer = (
        hf_model(folder, torch.float64),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    names = [model.metadata.tensor_names["mlp/w_down"][0].format(l=layer) for layer in LAYERS]
    parameters = [hf.get_parameter(name) for name in names]
    before = [parameter.detach().clone() for parameter in parameters]
    bases = []
    for layer in LAYERS:
        s_F, u_FF = np.linalg.eigh(stats.moments[layer].astype(np.float64))
        s_D, u_DD = np.linalg.eigh(stats.gradients[layer].astype(np.float64))
        mask_FD = low_curvature_mask(s_F, s_D, hyper.energy_threshold)
        assert 0.1 < mask_FD.mean() < 1
        bases.append((u_FF, u_DD, mask_FD))

    def project(i: int, gradient: torch.Tensor) -> torch.Tensor:
        u_FF, u_DD, mask_FD = bases[i]
        g_FD = gradient.numpy() if family == "gpt2" else gradient.numpy().T  # Conv1D: in x out
        out_FD = u_FF @ ((u_FF.T @ g_FD @ u_DD) * mask_FD) @ u_DD.T
        return torch.as_tensor(out_FD if family == "gpt2" else out_FD.T.copy())

    rng = generator_of(hyper.seed, REQUESTS)
    orders = [rng.permutation(len(REQUESTS)) for _ in range(hyper.epochs)]
    fine_tune(hf, tokenizer, REQUESTS, parameters, orders, hyper.lr, 2, True, project)
    found = made.dense()
    for name, parameter, old in zip(names, parameters, before, strict=True):
        assert relative(found[name], (parameter.detach() - old).numpy()) <= 1e-4, name


def test_it_needs_the_moments_of_gradients(golden):
    model = golden("gpt2")
    editor = jaxedit.make_editor("crispedit", layers=LAYERS)
    with pytest.raises(ValueError, match="jaxedit stats --gradients, and give them as stats"):
        editor.init(model, None)
    with pytest.raises(ValueError, match="jaxedit stats --gradients"):
        editor.init(model, jaxedit.collect_stats(model, TEXTS, LAYERS))
