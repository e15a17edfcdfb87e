"""Edits side by side in the rows of a batch: each row is what the model with that edit alone says."""

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import Dense, LowRank, make_edit, with_per_row_edits
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
    rng = np.random.default_rng(0)
    _, F, D = model.base["mlp/w_down"].shape

    def delta(layer, rank):
        return LowRank(
            "mlp/w_down",
            layer,
            rng.standard_normal((F, rank)) / F**0.5,
            rng.standard_normal((rank, D)) * 0.3,
        )

    return [
        make_edit(model, [delta(layer, rank) for layer, rank in zip(layers, of_edit, strict=True)])
        for of_edit in ranks
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, golden):
    """With an edit of its own that all rows have."""
    unedited = golden(request.param)
    return jaxedit.apply(unedited, edits_of(unedited, ranks=((1, 1),))[0])


@pytest.mark.parametrize("budget", [64, 2048], ids=["one at a time", "together"])
def test_perplexity(model, monkeypatch, budget):
    from jaxedit.metrics import perplexity as metric

    monkeypatch.setattr(metric, "BATCH_TOKENS", budget)
    edits = edits_of(model)
    found = perplexity_each(model, prepare(model, TEXTS, start_layer=2), edits)
    plain = perplexity(model, TEXTS).nll_nats
    for edit, scored in zip(edits, found, strict=True):
        wanted = perplexity(jaxedit.apply(model, edit), TEXTS)
        np.testing.assert_allclose(scored.nll_nats, wanted.nll_nats, rtol=1e-5)
        assert scored.n_tokens.tolist() == wanted.n_tokens.tolist()
        assert not np.allclose(scored.nll_nats, plain, rtol=1e-3)


def test_texts_in_several_batches(golden, monkeypatch):
    model = golden("gpt2")
    monkeypatch.setattr(packing, "BATCH_TOKENS", 32)
    edits, texts = edits_of(model), prepare(model, TEXTS * 3, start_layer=2)
    assert len(texts.packed.token_GBT) > 1
    for edit, scored in zip(edits, perplexity_each(model, texts, edits), strict=True):
        np.testing.assert_allclose(
            scored.nll_nats, perplexity(jaxedit.apply(model, edit), TEXTS * 3).nll_nats, rtol=1e-5
        )


def test_facts(model):
    edits = edits_of(model)
    for request, edit, found in zip(
        REQUESTS, edits, evaluate_facts(model, REQUESTS, edits), strict=True
    ):
        (wanted,) = evaluate_facts(jaxedit.apply(model, edit), [request])
        for key, value in wanted.items():
            assert found[key] == (
                pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            ), key


def test_generation(model):
    edits, prompts = edits_of(model), [request.prompt_text for request in REQUESTS]
    together = jaxedit.generate(
        with_per_row_edits(model, edits, np.arange(3)), prompts, max_new_tokens=6
    )
    alone = [
        jaxedit.generate(jaxedit.apply(model, edit), [prompt], max_new_tokens=6)[0]
        for edit, prompt in zip(edits, prompts, strict=True)
    ]
    assert together == alone
    assert together != jaxedit.generate(model, prompts, max_new_tokens=6)


def test_what_cannot_lie_side_by_side(golden):
    model = golden("gpt2")
    first, *_ = edits_of(model)
    dense = make_edit(model, [Dense("mlp/w_down", layer, np.zeros((192, 48))) for layer in (2, 3)])
    for other in (dense, edits_of(model, ranks=((1,),), layers=(2,))[0]):
        with pytest.raises(ValueError, match="must be low-rank changes of the same weights"):
            with_per_row_edits(model, [first, other], np.arange(2))
    with pytest.raises(ValueError, match=r"by a \(192, 48\) matrix, this model's is \(112, 48\)"):
        with_per_row_edits(golden("llama"), [first], np.zeros(1, int))
    with pytest.raises(ValueError, match="prefilled below layer 3, the model has edits at layer 2"):
        perplexity_each(model, prepare(model, TEXTS, start_layer=3), [first])
