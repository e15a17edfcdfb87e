"""Perplexity against HF torch (the golden numbers), its formulas in float64, and at its edges."""

import math
from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers

import jaxedit
from jaxedit import LowRank
from jaxedit.datasets import read_texts
from jaxedit.edits.edit import make_edit
from jaxedit.metrics.perplexity import Perplexity, perplexity, prepare
from jaxedit.models import packing, score
from jaxedit.rounding import ceil_div

FAMILIES = ("gpt2", "gptj", "llama")


@pytest.fixture(scope="module")
def texts(golden_expected):
    """Make a function: family -> its golden texts."""
    return lambda family: golden_expected(family)[0]["texts"]


@pytest.fixture(scope="module")
def per_text(golden_expected):
    """Make a function: family -> its texts' perplexities by torch."""
    return lambda family: golden_expected(family)[1]["ppl/per_text"]


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_is_that_of_torch(family, golden, golden_expected, texts):
    _, expected = golden_expected(family)
    found = perplexity(golden(family), texts(family))
    np.testing.assert_allclose(found.per_text, expected["ppl/per_text"], rtol=1e-5)
    np.testing.assert_allclose(found.mean, expected["ppl/mean"], rtol=1e-5)
    assert found.n_non_finite == 0


def test_chunks_of_the_vocabulary_that_overlap_count_each_entry_once(
    golden, per_text, texts, monkeypatch
):
    monkeypatch.setattr(score, "CPU_HEAD_WIDTH", 300)  # of 800 entries: the last chunk repeats 100
    jax.clear_caches()
    found = perplexity(golden("gpt2"), texts("gpt2"))
    jax.clear_caches()
    np.testing.assert_allclose(found.per_text, per_text("gpt2"), rtol=1e-5)


@pytest.mark.parametrize("bos", [False, True])
def test_losses_are_those_of_a_torch_loop(bos, golden, shared, texts):
    load = transformers.AutoModelForCausalLM.from_pretrained
    hf = load(shared / "golden/llama", dtype=torch.float32).eval()
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


@pytest.fixture(scope="module")
def two() -> tuple[Perplexity, Perplexity]:
    """Draw losses of thirty texts under two models."""
    rng = np.random.default_rng(0)
    n_tokens = rng.integers(1, 40, size=30)
    edited_nats, base_nats = rng.uniform(1, 6, size=(2, 30)) * n_tokens
    return Perplexity(edited_nats, n_tokens), Perplexity(base_nats, n_tokens)


def test_mean_and_pooled_perplexity_are_their_formulas(two):
    edited, _ = two
    pairs = list(zip(edited.nll_nats, edited.n_tokens, strict=True))
    assert edited.mean == pytest.approx(sum(math.exp(s / n) for s, n in pairs) / 30, rel=1e-14)
    pooled = math.exp(sum(edited.nll_nats) / sum(edited.n_tokens))
    assert edited.pooled == pytest.approx(pooled, rel=1e-14)


def test_the_paired_difference_is_its_formula(two):
    edited, base = two
    nll_nats, base_nats, n_tokens = edited.nll_nats, base.nll_nats, edited.n_tokens
    difference = [(s - b) / n for s, b, n in zip(nll_nats, base_nats, n_tokens, strict=True)]
    mean = sum(difference) / 30
    error = math.sqrt(sum((d - mean) ** 2 for d in difference) / 29 / 30)
    assert edited.paired_difference(base) == pytest.approx((mean, error), rel=1e-12)
    assert base.paired_difference(edited) == pytest.approx((-mean, error), rel=1e-12)
    assert edited.paired_difference(edited) == (0.0, 0.0)


def test_a_paired_difference_needs_the_same_texts(two):
    edited, base = two
    with pytest.raises(ValueError, match="the same texts"):
        edited.paired_difference(Perplexity(base.nll_nats, base.n_tokens + 1))


def test_one_text_has_a_difference_but_no_standard_error(golden, texts):
    text = texts("gpt2")[0]
    found = perplexity(golden("gpt2"), [text])
    assert found.mean == found.pooled == found.per_text[0]
    assert found.n_tokens.tolist() == [len(golden("gpt2").tokenizer.encode(text)) - 1]
    lower = Perplexity(found.nll_nats - found.n_tokens, found.n_tokens)
    difference, error = found.paired_difference(lower)
    assert difference == pytest.approx(1.0)
    assert math.isnan(error)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_infinite_perplexity(loss):
    base = Perplexity(np.array([1.0, 2.0]), np.array([1, 1]))
    broken = Perplexity(np.array([loss, 2.0]), np.array([1, 1]))
    assert broken.per_text.tolist() == [math.inf, pytest.approx(math.exp(2))]
    assert broken.mean == broken.pooled == math.inf
    assert broken.n_non_finite == 1
    difference, error = broken.paired_difference(base)
    assert difference == math.inf
    assert math.isnan(error)
    assert math.isnan(base.paired_difference(broken)[1])


def test_a_loss_whose_exponential_overflows_is_finite():
    huge = Perplexity(np.array([1000.0, 2.0]), np.array([1, 1]))
    assert huge.mean == math.inf
    assert huge.n_non_finite == 0


@pytest.mark.parametrize("nothing", [[], "a text that is no list"])
def test_perplexity_needs_a_list_of_texts(golden, nothing):
    with pytest.raises(ValueError, match="a list of at least one text"):
        perplexity(golden("gpt2"), nothing)


@pytest.fixture(scope="module")
def one_token(golden) -> str:
    """Find a text of one token."""
    encode = golden("gpt2").tokenizer.encode
    return next(word for word in ("a", "b", "c") if len(encode(word)) == 1)


def test_a_text_needs_two_tokens(golden, one_token):
    message = r"text 2 \('.'\) has 1 tokens; perplexity needs at least two"
    with pytest.raises(ValueError, match=message):
        perplexity(golden("gpt2"), ["some text", "and more", one_token])
    with pytest.raises(ValueError, match=r"text 1 \(''\) has 0 tokens"):
        perplexity(golden("gpt2"), ["some text", ""])


def test_one_token_is_enough_behind_a_begin_of_text_token(golden, one_token):
    assert perplexity(golden("gpt2"), [one_token], bos=True).n_tokens.tolist() == [1]


def test_a_text_beyond_the_positions_is_refused_where_they_are_learned(golden, texts, per_text):
    long_text = texts("llama")[17]
    for family in ("gpt2", "llama"):
        assert len(golden(family).tokenizer.encode(long_text)) > golden(family).config.P
    message = r"text 1 .* has \d+ tokens, more than the 256 positions of this gpt2 model"
    with pytest.raises(ValueError, match=message):
        perplexity(golden("gpt2"), ["some text", long_text])
    found = perplexity(golden("llama"), [long_text]).mean
    np.testing.assert_allclose(found, per_text("llama")[17], rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_keep_the_texts_order(family, golden, texts):
    model, listed = golden(family), texts(family)
    together = perplexity(model, listed)
    assert len(set(together.n_tokens.tolist())) > 10  # so packing changes the order
    order = np.random.default_rng(0).permutation(len(listed))
    shuffled = perplexity(model, [listed[i] for i in order])
    np.testing.assert_allclose(shuffled.nll_nats, together.nll_nats[order], rtol=1e-5)
    assert shuffled.n_tokens.tolist() == together.n_tokens[order].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_the_texts_beside(family, golden, texts):
    model, listed = golden(family), texts(family)
    together = perplexity(model, listed).nll_nats
    many = prepare(model, listed * 4)
    assert len(many.packed.token_GBT) > 1  # several batches
    np.testing.assert_allclose(perplexity(model, many).nll_nats, np.tile(together, 4), rtol=1e-5)
    for i in (0, 3):
        alone = perplexity(model, [listed[i]]).nll_nats
        np.testing.assert_allclose(alone, together[i : i + 1], rtol=1e-5)


class Mixture(NamedTuple):
    """Many short texts, which fill two batches, and a long one."""

    short: list[str]
    n_times: int  # the short ones
    long: str

    @property
    def texts(self) -> list[str]:
        return [*self.short * self.n_times, self.long]


@pytest.fixture(scope="module")
def mixture(golden, texts) -> Mixture:
    """Mix short texts and one that is more than four times as long."""
    sizes = {text: len(golden("llama").tokenizer.encode(text)) for text in texts("llama")}
    short = [text for text in texts("llama") if sizes[text] <= 60]
    long = max(texts("llama"), key=len)
    assert sizes[long] > 4 * 64
    n_times = ceil_div(2 * packing.BATCH_TOKENS, sum(sizes[text] for text in short))
    return Mixture(short, n_times, long)


def test_one_long_text_does_not_make_all_rows_long(golden, mixture):
    """Rows are halved in width while what fits the half fills a batch."""
    model = golden("llama")
    packed = prepare(model, mixture.texts).packed
    widths = sorted({token_BT.shape[1] for token_BT in packed.token_GBT})
    longest = len(model.tokenizer.encode(mixture.long))
    assert len(widths) == 2
    assert widths[0] <= 80
    assert longest <= widths[1] < longest + 16
    n_positions = sum(token_BT.size for token_BT in packed.token_GBT)
    assert sum(map(np.count_nonzero, packed.segment_GBT)) > 0.75 * n_positions


def test_texts_in_rows_of_several_widths_have_the_losses_they_have_alone(golden, mixture):
    model = golden("llama")
    found = perplexity(model, mixture.texts).nll_nats
    short = np.tile(perplexity(model, mixture.short).nll_nats, mixture.n_times)
    alone = [*short, *perplexity(model, [mixture.long]).nll_nats]
    np.testing.assert_allclose(found, alone, rtol=1e-5)


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


# Prefilled texts


def edited_at(model: jaxedit.Model, layer: int) -> jaxedit.Model:
    """Add a random edit of rank one to a layer."""
    rng = np.random.default_rng(0)
    u_FR = rng.standard_normal((model.config.F, 1)).astype(np.float32)
    v_RD = rng.standard_normal((1, model.config.D)).astype(np.float32)
    return jaxedit.apply(model, make_edit(model, [LowRank("mlp/w_down", layer, u_FR, v_RD)]))


def test_prefilled_texts_give_the_same_numbers_for_edits_from_their_layer_on(golden, texts):
    model, listed = golden("gpt2"), texts("gpt2")
    prefilled = prepare(model, listed, start_layer=3)
    assert prefilled.hidden_G[0] is not None
    edited = edited_at(model, 3)
    expected = [perplexity(version, listed).nll_nats for version in (model, edited)]
    assert not np.allclose(*expected, rtol=1e-3)
    for version, nll_nats in zip((model, edited), expected, strict=True):
        np.testing.assert_allclose(perplexity(version, prefilled).nll_nats, nll_nats, rtol=1e-6)


def test_prefilled_texts_refuse_edits_below_their_layer(golden, texts):
    model = golden("gpt2")
    prefilled = prepare(model, texts("gpt2"), start_layer=3)
    message = "prefilled below layer 3, the model has edits at layer 2"
    with pytest.raises(ValueError, match=message):
        perplexity(edited_at(model, 2), prefilled)


def test_prefilled_texts_refuse_another_model(golden, texts):
    prefilled = prepare(golden("gpt2"), texts("gpt2"), start_layer=3)
    with pytest.raises(ValueError, match="prefilled with another model"):
        perplexity(golden("gptj"), prefilled)


def test_residual_streams_beyond_the_budget_are_computed_again(golden, texts, monkeypatch):
    model, listed = golden("gpt2"), texts("gpt2") * 4
    monkeypatch.setattr(score, "PREFILL_BYTES", 4 * packing.BATCH_TOKENS * 48)
    prefilled = prepare(model, listed, start_layer=3)
    assert {h is None for h in prefilled.hidden_G} == {True, False}
    found = perplexity(model, prefilled).nll_nats
    np.testing.assert_allclose(found, perplexity(model, listed).nll_nats, rtol=1e-6)
