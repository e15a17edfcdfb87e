"""Fluency against the ROME repository's expression, written out."""

import math

import nltk
import numpy as np
import pytest

from jaxedit.metrics.fluency import entropy, fluency, generate_texts
from jaxedit.models.generate import generate


def published(text: str) -> float:
    """Compute `n_gram_entropy` of eval_utils_counterfact.py, with nltk's own counters.

    Its `nltk.word_tokenize` takes sentences apart, with what has to be downloaded for English.
    """
    values = []
    sentences = nltk.tokenize.PunktSentenceTokenizer().tokenize(text)
    split = nltk.tokenize.NLTKWordTokenizer().tokenize
    words = [word for sentence in sentences for word in split(sentence)]
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        found = nltk.FreqDist(nltk.ngrams(words, n))
        shares = np.array([count for _, count in found.items()]) / found.N()
        values.append(weight * np.sum(-shares * np.log2(shares)))
    return float(np.mean(values))


def test_entropy_is_that_of_the_n_grams_frequencies():
    expected = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    assert entropy("a b a b", 2) == pytest.approx(expected)


def test_words_are_split_as_nltk_splits_them():
    assert entropy("It isn't, is it?", 2) == pytest.approx(math.log2(6))  # It is n't , is it ?


@pytest.mark.parametrize(("text", "n"), [("again again again again", 3), ("one", 2)])
def test_repetition_and_short_texts_have_no_entropy(text, n):
    assert entropy(text, n) == 0


def test_a_full_stop_within_the_text_is_a_word():
    # He works there . She is there . -> eight words, "there ." twice
    expected = -(2 / 7) * math.log2(2 / 7) - (5 / 7) * math.log2(1 / 7)
    assert entropy("He works there. She is there.", 2) == pytest.approx(expected)


def test_fluency_is_the_published_mean_over_sampled_texts(golden):
    """Texts of a hundred tokens with the prompt, as `generate_fast(max_out_len=100)` makes them."""
    model, prompts = golden("llama"), ["Once upon a time", "The capital of Italy", "The " * 120]
    texts = generate_texts(model, prompts, seed=3)
    for i, prompt in enumerate(prompts[:2]):
        n_new = 100 - len(model.tokenizer.encode(prompt))
        whole = generate(model, prompts, max_new_tokens=n_new, top_k=5, seed=3)
        assert texts[i] == whole[i]
    assert texts[2] == prompts[2]  # over a hundred already: nothing follows
    assert fluency(texts) == pytest.approx(np.mean([published(text) for text in texts]), rel=1e-9)
