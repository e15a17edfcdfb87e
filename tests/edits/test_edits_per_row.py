"""Edits side by side in the rows of a batch: each row is as with that edit alone."""

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import Dense, LowRank, make_edit
from jaxedit.edits.per_row import with_per_row_edits
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.metrics.perplexity import perplexity, perplexity_each, prepare
from jaxedit.models import packing

FAMILIES = ("gptj", "llama")
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    " Once upon a time there was a little girl.",
    " A boy.",
]
REQUESTS = [
    jaxedit.Request(
        "{} lives in", "Bob", "Paris", target_true="London", paraphrases=("The home of Bob is",)
    ),
    jaxedit.Request("{} is based in", "Sony", "Rome", target_true="London"),
    jaxedit.Request("{} lives in", "Bob", "Paris", target_true="London"),
]


def edits_of(model, ranks=((1, 2), (2, 2), (1, 1)), layers=(2, 3)):
    """Draw edits of the same layers, with each edit's rank in each layer."""
    rng = np.random.default_rng(0)
    _, F, D = model.base["mlp/w_down"].shape

    def delta(layer: int, rank: int) -> LowRank:
        u_FR, v_RD = rng.standard_normal((F, rank)), rng.standard_normal((rank, D))
        return LowRank("mlp/w_down", layer, u_FR / F**0.5, v_RD * 0.3)

    edits = []
    for ranks_of_edit in ranks:
        pairs = zip(layers, ranks_of_edit, strict=True)
        edits.append(make_edit(model, [delta(layer, rank) for layer, rank in pairs]))
    return edits


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, golden):
    """Load a golden model, with an edit of its own that all rows have."""
    unedited = golden(request.param)
    return jaxedit.apply(unedited, edits_of(unedited, ranks=((1, 1),))[0])


@pytest.mark.parametrize("budget", [64, 2048], ids=["one at a time", "together"])
def test_perplexities_are_those_of_each_edit_alone(model, monkeypatch, budget):
    monkeypatch.setattr("jaxedit.metrics.perplexity.BATCH_TOKENS", budget)
    edits = edits_of(model)
    found = perplexity_each(model, prepare(model, TEXTS, start_layer=2), edits)
    plain = perplexity(model, TEXTS).nll_nats
    for edit, scored in zip(edits, found, strict=True):
        wanted = perplexity(jaxedit.apply(model, edit), TEXTS)
        np.testing.assert_allclose(scored.nll_nats, wanted.nll_nats, rtol=1e-5)
        assert scored.n_tokens.tolist() == wanted.n_tokens.tolist()
        assert not np.allclose(scored.nll_nats, plain, rtol=1e-3)


def test_perplexities_are_those_of_each_edit_alone_in_several_batches(golden, monkeypatch):
    model = golden("gpt2")
    monkeypatch.setattr(packing, "BATCH_TOKENS", 32)
    edits, texts = edits_of(model), prepare(model, TEXTS * 3, start_layer=2)
    assert len(texts.packed.token_GBT) > 1
    for edit, scored in zip(edits, perplexity_each(model, texts, edits), strict=True):
        alone = perplexity(jaxedit.apply(model, edit), TEXTS * 3)
        np.testing.assert_allclose(scored.nll_nats, alone.nll_nats, rtol=1e-5)


def test_facts_are_those_of_each_edit_alone(model):
    edits = edits_of(model)
    together = evaluate_facts(model, REQUESTS, edits)
    for request, edit, found in zip(REQUESTS, edits, together, strict=True):
        (alone,) = evaluate_facts(jaxedit.apply(model, edit), [request])
        for key, value in alone.items():
            close = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert found[key] == close, key


def test_continuations_are_those_of_each_edit_alone(model):
    edits, prompts = edits_of(model), [request.prompt_text for request in REQUESTS]
    with_edits = with_per_row_edits(model, edits, np.arange(3))
    together = jaxedit.generate(with_edits, prompts, max_new_tokens=6)
    for edit, prompt, text in zip(edits, prompts, together, strict=True):
        assert jaxedit.generate(jaxedit.apply(model, edit), [prompt], max_new_tokens=6) == [text]
    assert together != jaxedit.generate(model, prompts, max_new_tokens=6)


@pytest.mark.parametrize("other", ["dense", "of one layer"])
def test_edits_that_differ_in_kind_or_layers_are_refused(golden, other):
    model = golden("gpt2")
    first, *_ = edits_of(model)
    zeros = [Dense("mlp/w_down", layer, np.zeros((192, 48))) for layer in (2, 3)]
    if other == "dense":
        second = make_edit(model, zeros)
    else:
        (second,) = edits_of(model, ranks=((1,),), layers=(2,))
    with pytest.raises(ValueError, match="must be low-rank changes of the same weights"):
        with_per_row_edits(model, [first, second], np.arange(2))


def test_another_models_edits_are_refused(golden):
    first, *_ = edits_of(golden("gpt2"))
    with pytest.raises(ValueError, match=r"by a \(192, 48\) matrix, this model's is \(112, 48\)"):
        with_per_row_edits(golden("llama"), [first], np.zeros(1, int))


def test_edits_below_prefilled_layers_are_refused(golden):
    model = golden("gpt2")
    first, *_ = edits_of(model)
    message = "prefilled below layer 3, the model has edits at layer 2"
    with pytest.raises(ValueError, match=message):
        perplexity_each(model, prepare(model, TEXTS, start_layer=3), [first])
