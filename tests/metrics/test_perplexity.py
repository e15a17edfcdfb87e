"""Perplexity against HF torch (the golden numbers), against its formulas in float64, and at its
edges.
"""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import jaxedit
from jaxedit import LowRank
from jaxedit.datasets import read_texts
from jaxedit.edits.edit import make_edit
from jaxedit.metrics.perplexity import Perplexity, perplexity, prepare
from jaxedit.models import packing, score

FAMILIES = ("gpt2", "gptj", "llama")


@pytest.fixture(scope="module")
def texts(shared):
    """A function: family -> its golden texts."""
    return lambda family: json.loads(
        (shared / "golden" / family / "cases.json").read_text(encoding="utf-8")
    )["texts"]


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_is_that_of_torch(family, golden, shared, texts):
    expected = load_file(shared / "golden" / family / "expected.safetensors")
    found = perplexity(golden(family), texts(family))
    np.testing.assert_allclose(found.per_text, expected["ppl/per_text"], rtol=1e-5)
    np.testing.assert_allclose(found.mean, expected["ppl/mean"], rtol=1e-5)
    assert found.n_broken == 0


def test_chunks_of_the_vocabulary_that_overlap_count_each_entry_once(
    golden, shared, texts, monkeypatch
):
    expected = load_file(shared / "golden/gpt2/expected.safetensors")["ppl/per_text"]
    monkeypatch.setattr(score, "CPU_HEAD_WIDTH", 300)  # of 800 entries: the last chunk repeats 100
    score.token_losses_of_batch.clear_cache()
    found = perplexity(golden("gpt2"), texts("gpt2"))
    score.token_losses_of_batch.clear_cache()
    np.testing.assert_allclose(found.per_text, expected, rtol=1e-5)


@pytest.mark.parametrize("bos", [False, True])
def test_losses_are_those_of_a_torch_loop(bos, golden, shared, texts):
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden/llama", dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "golden/llama")
    some = texts("llama")[:6]
    nll_nats, n_tokens = [], []
    for text in some:
        tokens = [hf.config.bos_token_id] * bos + tokenizer(text).input_ids
        with torch.no_grad():
            log_probs = torch.log_softmax(hf(torch.tensor([tokens])).logits[0].double(), -1)
        nll_nats.append(-sum(float(log_probs[t - 1, tokens[t]]) for t in range(1, len(tokens))))
        n_tokens.append(len(tokens) - 1)
    found = perplexity(golden("llama"), some, bos=bos)
    np.testing.assert_allclose(found.nll_nats, nll_nats, rtol=1e-5)
    assert found.n_tokens.tolist() == n_tokens


def test_mean_pooled_and_versus_are_their_formulas():
    generator = np.random.default_rng(0)
    n_tokens = generator.integers(1, 40, size=30)
    nll_nats, base_nats = generator.uniform(1, 6, size=(2, 30)) * n_tokens
    edited, base = Perplexity(nll_nats, n_tokens), Perplexity(base_nats, n_tokens)
    assert edited.mean == pytest.approx(
        sum(math.exp(s / n) for s, n in zip(nll_nats, n_tokens, strict=True)) / 30, rel=1e-14
    )
    assert edited.pooled == pytest.approx(math.exp(sum(nll_nats) / sum(n_tokens)), rel=1e-14)
    difference = [(s - b) / n for s, b, n in zip(nll_nats, base_nats, n_tokens, strict=True)]
    mean = sum(difference) / 30
    error = math.sqrt(sum((d - mean) ** 2 for d in difference) / 29 / 30)
    assert edited.paired_difference(base) == pytest.approx((mean, error), rel=1e-12)
    assert base.paired_difference(edited) == pytest.approx((-mean, error), rel=1e-12)
    assert edited.paired_difference(edited) == (0.0, 0.0)
    with pytest.raises(ValueError, match="the same texts"):
        edited.paired_difference(Perplexity(base_nats, n_tokens + 1))


def test_one_text(golden, texts):
    text = texts("gpt2")[0]
    found = perplexity(golden("gpt2"), [text])
    assert found.mean == found.pooled == found.per_text[0]
    assert found.n_tokens.tolist() == [len(golden("gpt2").tokenizer.encode(text)) - 1]
    difference, error = found.paired_difference(
        Perplexity(found.nll_nats - found.n_tokens, found.n_tokens)
    )
    assert difference == pytest.approx(1.0)
    assert math.isnan(error)


def test_a_loss_that_is_not_finite_is_infinite_perplexity():
    base = Perplexity(np.array([1.0, 2.0]), np.array([1, 1]))
    for loss in (np.nan, np.inf):
        broken = Perplexity(np.array([loss, 2.0]), np.array([1, 1]))
        assert broken.per_text.tolist() == [math.inf, pytest.approx(math.exp(2))]
        assert broken.mean == broken.pooled == math.inf
        assert broken.n_broken == 1
        difference, error = broken.paired_difference(base)
        assert difference == math.inf
        assert math.isnan(error)
        assert math.isnan(base.paired_difference(broken)[1])
    huge = Perplexity(
        np.array([1000.0, 2.0]), np.array([1, 1])
    )  # exp overflows, but the loss is a number
    assert huge.mean == math.inf
    assert huge.n_broken == 0


def test_what_cannot_be_scored_raises(golden, texts):
    model = golden("gpt2")
    for nothing in ([], "a text that is no list"):
        with pytest.raises(ValueError, match="a list of at least one text"):
            perplexity(model, nothing)
    one = next(word for word in ("a", "b", "c") if len(model.tokenizer.encode(word)) == 1)
    with pytest.raises(
        ValueError, match=r"text 2 \('.'\) has 1 tokens; perplexity needs at least two"
    ):
        perplexity(model, ["some text", "and more", one])
    with pytest.raises(ValueError, match=r"text 1 \(''\) has 0 tokens"):
        perplexity(model, ["some text", ""])
    assert perplexity(model, [one], bos=True).n_tokens.tolist() == [1]


def test_a_text_beyond_the_positions_raises_where_they_are_learned(golden, texts, shared):
    long_text = texts("llama")[17]
    for family in ("gpt2", "llama"):
        assert len(golden(family).tokenizer.encode(long_text)) > golden(family).config.P
    with pytest.raises(
        ValueError,
        match=r"text 1 .* has \d+ tokens, more than the 256 positions of this gpt2 model",
    ):
        perplexity(golden("gpt2"), ["some text", long_text])
    expected = load_file(shared / "golden/llama/expected.safetensors")["ppl/per_text"][17]
    np.testing.assert_allclose(perplexity(golden("llama"), [long_text]).mean, expected, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_keep_their_order_and_do_not_depend_on_the_company(family, golden, texts):
    model, listed = golden(family), texts(family)
    together = perplexity(model, listed)
    assert len(set(together.n_tokens.tolist())) > 10  # so packing changes the order
    order = np.random.default_rng(0).permutation(len(listed))
    shuffled = perplexity(model, [listed[i] for i in order])
    np.testing.assert_allclose(shuffled.nll_nats, together.nll_nats[order], rtol=1e-5)
    assert shuffled.n_tokens.tolist() == together.n_tokens[order].tolist()
    packed = prepare(model, listed * 4)
    assert len(packed.packed.token_GBT) > 1  # several batches
    np.testing.assert_allclose(
        perplexity(model, packed).nll_nats, np.tile(together.nll_nats, 4), rtol=1e-5
    )
    for i in (0, 3):
        np.testing.assert_allclose(
            perplexity(model, [listed[i]]).nll_nats, together.nll_nats[i : i + 1], rtol=1e-5
        )


def test_one_long_text_does_not_make_all_rows_long(golden, texts):
    """Rows are halved in width while what fits the half fills a batch; each text keeps the loss
    that it has alone.
    """
    model = golden("llama")
    short = [text for text in texts("llama") if len(model.tokenizer.encode(text)) <= 60]
    long_text = max(texts("llama"), key=len)
    longest = len(model.tokenizer.encode(long_text))
    assert longest > 4 * 64
    times = -(-2 * packing.BATCH_TOKENS // sum(len(model.tokenizer.encode(text)) for text in short))
    listed = [*short * times, long_text]
    packed = prepare(model, listed).packed
    widths = sorted({token_BT.shape[1] for token_BT in packed.token_GBT})
    assert len(widths) == 2
    assert widths[0] <= 80
    assert longest <= widths[1] < longest + 16
    n_positions = sum(token_BT.size for token_BT in packed.token_GBT)
    assert sum(map(np.count_nonzero, packed.segment_GBT)) > 0.75 * n_positions
    found = perplexity(model, listed)
    alone = np.concatenate(
        [perplexity(model, short).nll_nats] * times + [perplexity(model, [long_text]).nll_nats]
    )
    np.testing.assert_allclose(found.nll_nats, alone, rtol=1e-5)


def test_leading_spaces_are_part_of_the_text(golden, texts):
    spaced = [text for text in texts("gpt2") if text.startswith(" ")]
    assert spaced
    found = perplexity(golden("gpt2"), spaced)
    stripped = perplexity(golden("gpt2"), [text.lstrip() for text in spaced])
    assert np.all(np.abs(found.per_text / stripped.per_text - 1) > 1e-3)


@pytest.mark.smollm2
def test_smollm2_on_me_ppl_50(smollm2, shared):
    found = perplexity(smollm2, read_texts(str(shared / "data/me-ppl/ME-PPL_50.json")))
    assert found.n_tokens.sum() == 1302
    assert found.mean == pytest.approx(167.27, rel=1e-3)


def test_what_lies_below_the_edits_is_computed_once(golden, texts):
    """Begun texts give the same numbers for edits from their layer on, and refuse what they do not
    belong to.
    """
    model, listed = golden("gpt2"), texts("gpt2")
    rng = np.random.default_rng(0)
    u_FR, v_RD = (
        rng.standard_normal((192, 1)).astype(np.float32),
        rng.standard_normal((1, 48)).astype(np.float32),
    )
    edited = {
        layer: jaxedit.apply(model, make_edit(model, [LowRank("mlp/w_down", layer, u_FR, v_RD)]))
        for layer in (2, 3)
    }
    begun = prepare(model, listed, start_layer=3)
    assert begun.hidden_G[0] is not None
    expected = [perplexity(version, listed).nll_nats for version in (model, edited[3])]
    for version, nll_nats in zip((model, edited[3]), expected, strict=True):
        np.testing.assert_allclose(perplexity(version, begun).nll_nats, nll_nats, rtol=1e-6)
    assert not np.allclose(*expected, rtol=1e-3)
    with pytest.raises(ValueError, match="begun below layer 3, the model has edits at layer 2"):
        perplexity(edited[2], begun)
    with pytest.raises(ValueError, match="begun with another model"):
        perplexity(golden("gptj"), begun)


def test_a_budget_for_what_is_kept_between_calls(golden, texts, monkeypatch):
    model, listed = golden("gpt2"), texts("gpt2") * 4
    n_batches = len(prepare(model, listed).hidden_G)
    monkeypatch.setattr(score, "BEGUN_BYTES", 4 * packing.BATCH_TOKENS * 48)
    begun = prepare(model, listed, start_layer=3)
    assert 0 < sum(h is not None for h in begun.hidden_G) < n_batches
    np.testing.assert_allclose(
        perplexity(model, begun).nll_nats, perplexity(model, listed).nll_nats, rtol=1e-6
    )
