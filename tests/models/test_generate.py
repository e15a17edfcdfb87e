"""Generation: greedy as HF does it, sampling among the k most likely, ends of texts, and what it
refuses.
"""

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
    """The model with another end-of-text token, or none."""
    tokenizer = dataclasses.replace(model.tokenizer, eos_id=eos_id)
    return dataclasses.replace(
        model, metadata=dataclasses.replace(model.metadata, tokenizer=tokenizer)
    )


@pytest.fixture(scope="module")
def gpt2(tiny_checkpoint) -> jaxedit.Model:
    return without_end(jaxedit.load(str(tiny_checkpoint("gpt2"))))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_hf(tiny_checkpoint, prompts, family):
    directory = tiny_checkpoint(family)
    theirs = hf_model(directory)
    model = without_end(jaxedit.load(str(directory)))
    ours = continue_tokens(model, prompts, max_new_tokens=N_NEW)
    assert ours == [hf_greedy(theirs, prompt, N_NEW) for prompt in prompts]
    assert len({tuple(row) for row in ours}) == len(prompts)
    assert max(len(set(row)) for row in ours) > 3  # not one token repeated


def test_text_in_text_out(tiny_checkpoint, gpt2):
    prompts = ["Once upon", "Paris"]
    texts = jaxedit.generate(gpt2, prompts, max_new_tokens=6)
    tokens = continue_tokens(
        gpt2, [gpt2.tokenizer.encode(prompt) for prompt in prompts], max_new_tokens=6
    )
    assert texts == [
        prompt + gpt2.tokenizer.decode(new) for prompt, new in zip(prompts, tokens, strict=True)
    ]


def test_begin_token_is_seen(tiny_checkpoint, gpt2):
    model = without_end(jaxedit.load(str(tiny_checkpoint("gpt2")), add_bos=True))
    prompts = ["Once upon", "Paris"]
    texts, plain = (jaxedit.generate(m, prompts, max_new_tokens=6) for m in (model, gpt2))
    tokens = continue_tokens(
        gpt2, [gpt2.tokenizer.encode(prompt, bos=True) for prompt in prompts], max_new_tokens=6
    )
    for prompt, text, new, other in zip(prompts, texts, tokens, plain, strict=True):
        assert text.endswith(prompt + model.tokenizer.decode(new))
        assert not text.endswith(other)


def test_top_k_takes_only_likely_tokens_and_follows_the_seed(gpt2, prompts):
    k = 4
    ours = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW, top_k=k, seed=1)
    assert ours == continue_tokens(gpt2, prompts, max_new_tokens=N_NEW, top_k=k, seed=1)
    other = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW, top_k=k, seed=2)
    greedy = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW)
    assert all(a != b for a, b in zip(ours, other, strict=True))
    assert all(a != b for a, b in zip(ours, greedy, strict=True))
    rows = np.zeros((len(prompts), max(LENGTHS) + N_NEW), int)
    for row, prompt, new in zip(rows, prompts, ours, strict=True):
        row[: len(prompt) + N_NEW] = prompt + new
    logits = np.asarray(jaxedit.logits(gpt2, rows))
    ranks = []
    for row, prompt, new in zip(logits, prompts, ours, strict=True):
        at = row[len(prompt) - 1 : len(prompt) - 1 + N_NEW]
        ranks += [int((step > step[token]).sum()) for step, token in zip(at, new, strict=True)]
    assert set(ranks) == set(range(k))


def test_top_k_samples_by_probability(gpt2, prompts):
    k, n = 8, 1000
    tokens = [
        row[0] for row in continue_tokens(gpt2, [prompts[0]] * n, max_new_tokens=1, top_k=k, seed=7)
    ]
    logits = np.asarray(jaxedit.logits(gpt2, [prompts[0]]))[0, -1]
    likely = np.argsort(-logits)[:k]
    p = np.exp(logits[likely] - logits[likely].max())
    p /= p.sum()
    counts = np.array([tokens.count(int(token)) for token in likely])
    assert counts.sum() == n
    sigma = np.sqrt(p * (1 - p) / n)
    assert (np.abs(counts / n - p) < 4 * sigma).all()
    assert (np.abs(1 / k - p) > 4 * sigma).any()  # equal chances would not pass


def test_end_of_text_stops_a_row(gpt2, prompts):
    whole = continue_tokens(gpt2, prompts, max_new_tokens=N_NEW)
    end = next(token for token in whole[0][1:] if not all(token in row for row in whole))
    ended = without_end(gpt2, end)
    rows = continue_tokens(ended, prompts, max_new_tokens=N_NEW)
    assert rows == [row[: row.index(end)] if end in row else row for row in whole]
    assert 0 < len(rows[0]) < N_NEW
    assert max(map(len, rows)) == N_NEW


def test_what_is_refused(tiny_checkpoint, gpt2, prompts):
    with pytest.raises(ValueError, match="at least one prompt"):
        jaxedit.generate(gpt2, [])
    with pytest.raises(ValueError, match="each prompt at least one token"):
        jaxedit.generate(gpt2, ["Once", ""])
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        jaxedit.generate(gpt2, ["Once"], max_new_tokens=0)
    for k in (0, 97):
        with pytest.raises(ValueError, match=rf"top_k={k} must be positive \(top_k at most 96\)"):
            jaxedit.generate(gpt2, ["Once"], top_k=k)
    with pytest.raises(
        ValueError, match=r"65 tokens, more than the 64 positions of this gpt2 model; shorten"
    ):
        continue_tokens(gpt2, prompts, max_new_tokens=N_NEW + 1)
