"""Generation: greedy as HF does it, top-k sampling, ends of texts, and what is refused."""

import dataclasses

import numpy as np
import pytest
from reference.models import hf_greedy, hf_model

import jaxedit
from jaxedit.models.generate import continue_tokens

FAMILIES = ["gemma", "gpt2", "gpt_neox", "gptj", "llama", "qwen3"]
LENGTHS = [5, 1, 17, 33, 16]
N_NEW = 64 - max(LENGTHS)  # the last learned position is used


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(1, 96, length).tolist() for length in LENGTHS]


def without_end(model: jaxedit.Model, eos_id: int | None = None) -> jaxedit.Model:
    """Return the model with another end-of-text token, or none."""
    tokenizer = dataclasses.replace(model.tokenizer, eos_id=eos_id)
    metadata = dataclasses.replace(model.metadata, tokenizer=tokenizer)
    return dataclasses.replace(model, metadata=metadata)


@pytest.fixture(scope="module")
def gpt2(tiny_checkpoint) -> jaxedit.Model:
    return without_end(jaxedit.load(str(tiny_checkpoint("gpt2"))))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_continuations_are_those_of_hf(tiny_checkpoint, prompts, family):
    directory = tiny_checkpoint(family)
    theirs = hf_model(directory)
    model = without_end(jaxedit.load(str(directory)))
    ours = continue_tokens(model, prompts, max_new_tokens=N_NEW)
    assert ours == [hf_greedy(theirs, prompt, N_NEW) for prompt in prompts]
    assert len({tuple(row) for row in ours}) == len(prompts)
    assert max(len(set(row)) for row in ours) > 3  # not one token repeated


def test_texts_are_prompts_with_their_new_tokens(gpt2):
    prompts = ["Once upon", "Paris"]
    texts = jaxedit.generate(gpt2, prompts, max_new_tokens=6)
    token_lists = [gpt2.tokenizer.encode(prompt) for prompt in prompts]
    new_lists = continue_tokens(gpt2, token_lists, max_new_tokens=6)
    for text, prompt, new in zip(texts, prompts, new_lists, strict=True):
        assert text == prompt + gpt2.tokenizer.decode(new)


def test_a_begin_of_text_token_is_seen_where_the_model_adds_one(tiny_checkpoint, gpt2):
    model = without_end(jaxedit.load(str(tiny_checkpoint("gpt2")), add_bos=True))
    prompts = ["Once upon", "Paris"]
    texts, plain = (jaxedit.generate(m, prompts, max_new_tokens=6) for m in (model, gpt2))
    token_lists = [gpt2.tokenizer.encode(prompt, bos=True) for prompt in prompts]
    tokens = continue_tokens(gpt2, token_lists, max_new_tokens=6)
    for prompt, text, new, other in zip(prompts, texts, tokens, plain, strict=True):
        assert text.endswith(prompt + model.tokenizer.decode(new))
        assert not text.endswith(other)


def test_top_k_follows_the_seed(gpt2, prompts):
    first = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW, top_k=4, seed=1)
    assert first == continue_tokens(gpt2, prompts, max_new_tokens=N_NEW, top_k=4, seed=1)
    other = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW, top_k=4, seed=2)
    greedy = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW)
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert all(a != b for a, b in zip(first, greedy, strict=True))


def test_top_k_takes_the_k_most_likely_tokens_and_no_others(gpt2, prompts):
    k = 4
    ours = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW, top_k=k, seed=1)
    rows = np.zeros((len(prompts), max(LENGTHS) + N_NEW), int)
    for row, prompt, new in zip(rows, prompts, ours, strict=True):
        row[: len(prompt) + N_NEW] = prompt + new
    logits = np.asarray(jaxedit.logits(gpt2, rows))
    ranks = []
    for row, prompt, new in zip(logits, prompts, ours, strict=True):
        at = row[len(prompt) - 1 : len(prompt) - 1 + N_NEW]
        ranks += [int((step > step[token]).sum()) for step, token in zip(at, new, strict=True)]
    assert set(ranks) == set(range(k))


def test_top_k_samples_in_proportion_to_probability(gpt2, prompts):
    k, n = 8, 1000
    rows = continue_tokens(gpt2, [prompts[0]] * n, max_new_tokens=1, top_k=k, seed=7)
    tokens = [row[0] for row in rows]
    logits = np.asarray(jaxedit.logits(gpt2, [prompts[0]]))[0, -1]
    likely = np.argsort(-logits)[:k]
    p = np.exp(logits[likely] - logits[likely].max())
    p /= p.sum()
    counts = np.array([tokens.count(int(token)) for token in likely])
    assert counts.sum() == n
    sigma = np.sqrt(p * (1 - p) / n)
    assert (np.abs(counts / n - p) < 4 * sigma).all()
    assert (np.abs(1 / k - p) > 4 * sigma).any()  # equal chances would not pass


def test_an_end_of_text_token_ends_its_row_only(gpt2, prompts):
    whole = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW)
    end = next(token for token in whole[0][1:] if not all(token in row for row in whole))
    ended = without_end(gpt2, end)
    rows = continue_tokens(ended, prompts, max_new_tokens=N_NEW)
    assert rows == [row[: row.index(end)] if end in row else row for row in whole]
    assert 0 < len(rows[0]) < N_NEW
    assert max(map(len, rows)) == N_NEW


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "at least one prompt"),
        (["Once", ""], {}, "each prompt at least one token"),
        (["Once"], dict(max_new_tokens=0), "max_new_tokens=0"),
        (["Once"], dict(top_k=0), "top_k=0: expected a whole number, 1 to 96"),
        (["Once"], dict(max_new_tokens=2.0), "max_new_tokens=2.0: expected a whole number"),
        (["Once"], dict(max_new_tokens="3"), "max_new_tokens='3': expected a whole number"),
        (["Once"], dict(max_new_tokens=True), "max_new_tokens=True: expected a whole number"),
        (["Once"], dict(max_new_tokens=10**400), "max_new_tokens=1000"),
        (["Once"], dict(temperature="1"), "temperature='1': expected 0"),
        (["Once"], dict(temperature=10**400), "temperature=1000"),
        (["Once"], dict(top_p=10**400), "top_p=1000"),
        (["Once"], dict(top_k=3, seed=2**63), "seed=9223372036854775808: expected a whole number"),
        (["Once"], dict(top_k=97), "top_k=97: expected a whole number, 1 to 96"),
    ],
)
def test_what_cannot_be_continued_is_refused(gpt2, texts, settings, message):
    with pytest.raises(ValueError, match=message):
        jaxedit.generate(gpt2, texts, **settings)


def test_a_continuation_beyond_learned_positions_is_refused(gpt2, prompts):
    message = r"65 tokens, more than the 64 positions of this gpt2 model; shorten"
    with pytest.raises(ValueError, match=message):
        continue_tokens(gpt2, prompts, max_new_tokens=N_NEW + 1)


@pytest.mark.parametrize("n", [10**9, 2**31 - 1])
def test_a_continuation_that_does_not_fit_into_memory_is_refused(golden, n):
    """Rotary positions go on, so that nothing else ends it."""
    with pytest.raises(ValueError, match=r"keys and values of 1 rows of .* GB of memory: ask"):
        jaxedit.generate(golden("llama"), ["Once"], max_new_tokens=n)
