"""The predicted change of the loss: against finite differences, and a Fisher form in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from reference.models import hf_model

import jaxedit
from jaxedit.edits.edit import Dense, LowRank, make_edit, to_dense
from jaxedit.edits.predicted_change import PredictedChange, predict_change, predict_total_change
from jaxedit.metrics.perplexity import perplexity, prepare
from jaxedit.models.loss_probe import read_loss_probe
from jaxedit.models.model import allocate_deltas
from jaxedit.models.score import lowest_layer

TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    " Once upon a time there was a little girl who lived in the forest.",
    " The NBA and MLB haven't sold lawmakers on a cut so far",
]


def places_of(family):
    weights = ["mlp/w_down", "mlp/w_up"] + (["mlp/w_gate"] if family == "gemma3_text" else [])
    return tuple((weight, layer) for layer in (1, 2) for weight in weights)


def random_edit(model, places, seed=0, scale=1e-3):
    """A rank-two edit of each place."""
    rng = np.random.default_rng(seed)
    deltas = []
    for weight, layer in places:
        down = weight == "mlp/w_down"
        n_in, n_out = (model.config.F, model.config.D)[:: 1 if down else -1]
        u, v = rng.normal(size=(n_in, 2)), rng.normal(size=(2, n_out)) * scale
        deltas.append(LowRank(weight, layer, u.astype(np.float32), v.astype(np.float32)))
    return make_edit(model, deltas)


def scaled(edit, factor):
    deltas = tuple(delta._replace(v_RD=delta.v_RD * np.float32(factor)) for delta in edit.deltas)
    return dataclasses.replace(edit, deltas=deltas)


def losses(model, texts, edit, factor):
    """Each text's mean loss a token with so many times the edit."""
    return perplexity(jaxedit.apply(model, scaled(edit, factor)), texts).mean_nll


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3_text"])
def test_the_first_order_is_the_slope_of_the_loss(tiny_checkpoint, family):
    """By central differences; behind a post-norm and soft caps too."""
    model = jaxedit.load(tiny_checkpoint(family))
    places = places_of(family)
    texts = prepare(model, TEXTS, start_layer=1)
    edit = random_edit(model, places)
    found = predict_change(read_loss_probe(model, texts, places, n_draws=1), edit)
    step = 2.0
    slope = (losses(model, texts, edit, step) - losses(model, texts, edit, -step)) / (2 * step)
    np.testing.assert_allclose(found.first_nats, slope, rtol=2e-2, atol=3e-2 * abs(slope).max())


def fisher_form(model, directory, edit):
    """1/2 dy^T F dy of each text in float64: half the variance of the logits' change, by torch.

    Of a mean loss over n tokens with the next-token distributions p it is 1/(2n) sum_t Var_p(dz_t).
    """
    reference = hf_model(directory).double()
    logits = {}
    for sign in (1, -1):
        moved = hf_model(directory).double()
        for delta in edit.deltas:
            weight = moved.transformer.h[delta.layer].mlp.c_proj.weight
            weight.data += sign * torch.from_numpy(to_dense(delta).astype(np.float64))
        logits[sign] = moved
    found = []
    with torch.no_grad():
        for text in TEXTS:
            tokens = torch.tensor([model.tokenizer.encode(text, bos=False)])
            p = torch.softmax(reference(tokens).logits[0, :-1], -1)
            change = (logits[1](tokens).logits - logits[-1](tokens).logits)[0, :-1] / 2
            mean = (p * change).sum(-1, keepdim=True)
            found.append(0.5 * float(((p * (change - mean) ** 2).sum(-1)).mean()))
    return np.array(found)


def test_the_second_order_is_the_fisher_form_of_the_loss(golden, shared):
    """Over many draws, within their error; cross terms between tokens and layers included."""
    model = golden("gpt2")
    places = (("mlp/w_down", 2), ("mlp/w_down", 4))
    edit = random_edit(model, places, seed=1, scale=1e-4)
    texts = prepare(model, TEXTS, start_layer=2)
    found = predict_change(read_loss_probe(model, texts, places, n_draws=400), edit)
    expected = fisher_form(model, shared / "golden" / "gpt2", edit)
    stderr = np.std(found.second_nats, axis=0, ddof=1) / np.sqrt(400)
    assert np.all(stderr < 0.12 * expected)
    np.testing.assert_array_less(np.abs(found.second_nats.mean(axis=0) - expected), 4 * stderr)


def test_a_dense_edit_and_a_models_overlay_are_predicted_alike(golden):
    """Two edits of one place one after the other are predicted as their sum."""
    model = golden("gpt2")
    places = (("mlp/w_down", 2), ("mlp/w_down", 3))
    probe = read_loss_probe(model, prepare(model, TEXTS, start_layer=2), places, n_draws=3)
    edits = [random_edit(model, places, seed) for seed in (0, 1)]
    edited = jaxedit.apply(jaxedit.apply(model, edits[0]), edits[1])
    total = predict_total_change(probe, allocate_deltas(model, "mlp/w_down", (2, 3)), edited)
    summed = make_edit(
        model,
        [
            Dense(first.weight, first.layer, to_dense(first) + to_dense(second))
            for first, second in zip(*(edit.deltas for edit in edits), strict=True)
        ],
    )
    expected = predict_change(probe, summed)
    np.testing.assert_allclose(total.first_nats, expected.first_nats, rtol=1e-4)
    np.testing.assert_allclose(total.second_nats, expected.second_nats, rtol=1e-3)
    by_itself = [predict_change(probe, edit).first_nats for edit in edits]
    np.testing.assert_allclose(sum(by_itself), expected.first_nats, rtol=1e-3, atol=1e-7)


def test_prefilled_texts_and_a_begin_of_text_token_change_nothing_else(golden):
    model = golden("llama")
    places = (("mlp/w_down", 3),)
    edit = random_edit(model, places)
    changes = [
        predict_change(read_loss_probe(model, texts, places, n_draws=2), edit)
        for texts in (prepare(model, TEXTS), prepare(model, TEXTS, start_layer=3))
    ]
    np.testing.assert_allclose(changes[0].first_nats, changes[1].first_nats, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(changes[0].second_nats, changes[1].second_nats, rtol=1e-3)


def test_the_mean_and_its_error_are_over_texts_and_draws():
    change = PredictedChange(np.array([1.0, 3.0]), np.array([[2.0, 2.0], [4.0, 8.0]]))
    assert change.per_text(0.5).tolist() == [2.5, 5.5]
    assert change.mean_nats(0.5) == 4.0
    assert change.stderr_nats(0.5) == pytest.approx(0.5 * np.std([2.0, 6.0], ddof=1) / np.sqrt(2))
    assert np.isnan(PredictedChange(np.zeros(2), np.zeros((1, 2))).stderr_nats())


def test_what_cannot_be_predicted_is_named(golden):
    model = golden("gpt2")
    texts = prepare(model, TEXTS, start_layer=3)
    with pytest.raises(ValueError, match=r"n_draws=12, .*places in layers 3 \(below which"):
        read_loss_probe(model, texts, (("mlp/w_down", 2),))
    with pytest.raises(ValueError, match=r"layer\w* 3 .* to 5"):
        read_loss_probe(model, texts, (("mlp/w_down", 3), ("mlp/w_down", 6)))
    with pytest.raises(ValueError, match=r"n_draws=0, .*expected at least one draw"):
        read_loss_probe(model, texts, (("mlp/w_down", 3),), n_draws=0)
    probe = read_loss_probe(model, texts, (("mlp/w_down", 3),), n_draws=1)
    with pytest.raises(ValueError, match=r"changes mlp/w_down of layer 4; probed were mlp"):
        predict_change(probe, random_edit(model, (("mlp/w_down", 4),)))
    with pytest.raises(ValueError, match=r"would take \d+\.\d GB, .* of the host's .* fewer draws"):
        read_loss_probe(model, texts, (("mlp/w_down", 3),), n_draws=10**9)


def test_texts_that_lack_the_models_edits_are_refused(golden):
    """Those prefilled above an edit of the model are of the model without it."""
    model = golden("gpt2")
    edit = jaxedit.Edit(
        (jaxedit.Dense("mlp/w_down", 1, np.full((model.config.F, model.config.D), 0.01)),)
    )
    edited = jaxedit.apply(model, edit)
    with pytest.raises(ValueError, match="prefilled below layer 3, the model has edits at layer 1"):
        read_loss_probe(edited, prepare(edited, TEXTS, start_layer=3), (("mlp/w_down", 3),))
    assert lowest_layer(edited, [3]) == 1
    assert lowest_layer(model, [3]) == 3
