"""LocFT-BF against its loop in plain PyTorch, in float64, at places of every kind."""

import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from reference.checkpoints import edit_tensors
from reference.distance import relative
from reference.fine_tuning import fine_tune
from reference.models import hf_model

import jaxedit
from jaxedit.solving import fine_tuning
from jaxedit.solving.fine_tuning import generator_of

REQUESTS = [
    jaxedit.Request("{} lives in", "Ann", "Paris"),
    jaxedit.Request("The mother tongue of {} is", "Bob", "the English language"),
    jaxedit.Request("{} sings", "Tim", "a song"),
    jaxedit.Request("{} was born in the city of", "Sam", "Rome"),
    jaxedit.Request("The capital of {} is", "Italy", "London"),
]
PLACES = {
    "gpt2": (("mlp/w_up", "mlp/w_down"), (2, 4)),
    "gptj": (("mlp/w_up",), (3,)),
    "llama": (("mlp/w_gate", "mlp/w_up", "mlp/w_down"), (2,)),
}
HEAD = "lm_head.weight"


def edited_in_torch(folder, model, editor, requests):
    """The changes by HF name, the losses of the epochs and the number of skipped steps."""
    hyper = editor.hyper
    hf, tokenizer = (
        hf_model(folder, torch.float64),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    names = [
        model.metadata.tensor_names[weight][0].format(l=layer)
        for weight in hyper.weights
        for layer in hyper.layers
    ]
    parameters = [hf.get_parameter(name) for name in names]
    before = [parameter.detach().clone() for parameter in parameters]
    rng = generator_of(hyper.seed, requests)
    orders = [rng.permutation(len(requests)) for _ in range(hyper.epochs)]
    losses = fine_tune(
        hf, tokenizer, requests, parameters, orders, hyper.lr, hyper.minibatch, hyper.end_of_text
    )
    changes = {
        name: (parameter.detach() - old).numpy()
        for name, parameter, old in zip(names, parameters, before, strict=True)
    }
    return changes, losses


@pytest.mark.parametrize("family", PLACES)
def test_an_edit_is_that_of_the_released_loop(shared, golden, family):
    weights, layers = PLACES[family]
    editor = jaxedit.make_editor(
        "locft-bf", weights=weights, layers=layers, lr=2e-3, epochs=3, minibatch=2
    )
    model = golden(family)
    made, _, info = editor.edit(model, REQUESTS, editor.init(model, None))
    expected, losses = edited_in_torch(shared / "golden" / family, model, editor, REQUESTS)
    found = made.dense()
    assert found.keys() == expected.keys()
    assert len(found) == len(weights) * len(layers)
    for name, change in found.items():
        assert relative(change, expected[name]) <= 1e-4, name
    assert info["n_steps"] == 3
    np.testing.assert_allclose(
        [info["first_loss"], info["loss"]], [losses.epochs[0], losses.epochs[-1]], rtol=1e-5
    )


def test_low_losses_skip_steps_and_end_the_edit(shared, tmp_path):
    """On a golden model with its head times 5, so that a loss of 0.01 can be reached."""
    folder = shutil.copytree(shared / "golden" / "llama", tmp_path / "llama")
    edit_tensors(folder / "model.safetensors", lambda t: t.update({HEAD: 5 * t[HEAD]}))
    model, requests = jaxedit.load(str(folder)), REQUESTS[:2]
    editor = jaxedit.make_editor(
        "locft-bf", layers=(3,), lr=5e-3, epochs=40, minibatch=1, end_of_text=False
    )
    made, _, info = editor.edit(model, requests, editor.init(model, None))
    expected, losses = edited_in_torch(folder, model, editor, requests)
    assert losses.n_skipped > 0
    assert info["n_steps"] == len(losses.epochs) < 40
    assert info["loss"] < 1e-2
    ((name, change),) = made.dense().items()
    assert relative(change, expected[name]) <= 1e-4


def test_the_order_is_drawn_for_the_requests_and_the_seed(golden):
    """An edit does not depend on those before it, so that a study can go on after any of them."""
    orders = [
        [tuple(generator_of(seed, requests).permutation(5)) for _ in range(2)]
        for seed, requests in ((0, REQUESTS), (1, REQUESTS), (0, REQUESTS[::-1]))
    ]
    assert all(first == second for first, second in orders)
    assert len({first for first, _ in orders}) == 3


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        (dict(weights=("mlp/w_gate",)), "of .*gpt2 can be edited: mlp/w_down, mlp/w_up$"),
        (dict(weights=()), "can be edited"),
        (dict(weights=("mlp/w_up", "mlp/w_up")), "expected each once"),
        (dict(layers=(1, 6)), "has layers 0 to 5"),
        (dict(layers=(1, 1)), "expected each once"),
        (dict(leading_space="two"), "leading_space='two'"),
    ],
)
@pytest.mark.parametrize("method", ["locft-bf", "lora"])
def test_a_place_that_is_not_there_is_refused(golden, method, hyper, message):
    editor = jaxedit.make_editor(method, **dict(layers=(1,)) | hyper)
    with pytest.raises(ValueError, match=message):
        editor.init(golden("gpt2"), None)


def test_layers_below_the_place_run_once_or_in_each_epoch(golden, monkeypatch):
    """They are kept where they are not too large, and an edit is the same in either case."""
    ran = []
    run_below = fine_tuning.run_below

    def count(model, token_BT, lowest):
        jax.debug.callback(lambda: ran.append(lowest))
        return run_below(model, token_BT, lowest)

    monkeypatch.setattr(fine_tuning, "run_below", count)
    model, deltas = golden("gpt2"), []
    for kept_bytes, n_runs in ((fine_tuning.KEPT_BYTES, 3), (0, 4 * 3)):
        jax.clear_caches()
        monkeypatch.setattr(fine_tuning, "KEPT_BYTES", kept_bytes)
        editor = jaxedit.make_editor("locft-bf", layers=(3,), epochs=4, minibatch=2, lr=2e-3)
        made, _, _ = editor.edit(model, REQUESTS, editor.init(model, None))
        jax.effects_barrier()
        assert ran == [3] * n_runs
        ran.clear()
        deltas.append(made.deltas[0].delta_FD)
    np.testing.assert_allclose(deltas[0], deltas[1], rtol=1e-5, atol=1e-9)
