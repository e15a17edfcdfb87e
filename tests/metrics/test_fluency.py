"""Fluency against the ROME repository's expression, written out."""

import math

import nltk
import numpy as np
import pytest

from jaxedit.metrics.fluency import entropy, fluency, generate_texts
from jaxedit.models.generate import generate


def published(text: str) -> float:
    """`n_gram_entropy` of eval_utils_counterfact.py: frequencies by nltk's own counters, weights
    2/3 and 4/3.
    """
    values = []
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        found = nltk.FreqDist(nltk.ngrams(nltk.tokenize.NLTKWordTokenizer().tokenize(text), n))
        shares = np.array([count for _, count in found.items()]) / found.N()
        values.append(weight * np.sum(-shares * np.log2(shares)))
    return float(np.mean(values))


def test_entropy():
    assert entropy("a b a b", 2) == pytest.approx(
        -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    )
    assert entropy("again again again again", 3) == 0
    assert entropy("one", 2) == 0
    assert entropy("It isn't, is it?", 2) == pytest.approx(math.log2(6))  # It is n't , is it ?


def test_of_a_models_texts(golden):
    model, prompts = golden("llama"), ["Once upon a time", "The capital of Italy"]
    texts = generate(model, prompts, max_new_tokens=100, top_k=5, seed=3)
    assert generate_texts(model, prompts, seed=3) == texts
    assert fluency(texts) == pytest.approx(np.mean([published(text) for text in texts]), rel=1e-9)
