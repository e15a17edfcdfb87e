"""Fluency of generated text: the entropy of its n-grams, which repetition lowers.

As the ROME repository measures it (arXiv 2202.05262, GE): for each continued prompt the mean of 2/3
H_2 and 4/3 H_3, with H_n the entropy in bits of the text's n-grams of words; then the mean over
prompts. Reported there times 100.
"""

from collections import Counter

import numpy as np

from jaxedit.models.generate import generate
from jaxedit.models.model import Model
from jaxedit.models.texts import list_texts

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # n -> the weight of H_n
NEW_TOKENS = 100
TOP_K = 5


def generate_texts(model: Model, prompts: list[str], seed: int = 0) -> list[str]:
    """Generate the texts of which fluency and consistency are measured; prompts are included.

    Args:
      model: with or without edits.
      prompts: at least one.
      seed: of the sampling.

    Raises:
      ValueError: without prompts, or on one that is too long to be continued.
    """
    return generate(model, prompts, max_new_tokens=NEW_TOKENS, top_k=TOP_K, seed=seed)


def fluency(texts: list[str]) -> float:
    """Compute GE of texts that a model generated, in bits.

    Raises:
      ValueError: on a text instead of a list of texts.
    """
    listed = list_texts(texts, "fluency")
    return float(np.mean([_weighted_entropy(text) for text in listed]))


def _weighted_entropy(text: str) -> float:
    """Return the mean of a text's weighted n-gram entropies, in bits."""
    return float(np.mean([weight * entropy(text, n) for n, weight in WEIGHTS.items()]))


def entropy(text: str, n: int) -> float:
    """Compute the entropy in bits of a text's n-grams of words; 0 where it has none."""
    from nltk.tokenize import NLTKWordTokenizer  # slow to import

    words = NLTKWordTokenizer().tokenize(text)
    n_grams = zip(*(words[i:] for i in range(n)), strict=False)
    counts = np.array(list(Counter(n_grams).values()), float)
    if not len(counts):
        return 0.0
    share = counts / counts.sum()
    return float(-np.sum(share * np.log2(share)))
