"""Fluency of generated text: the entropy of its n-grams, which repetition lowers.

As the ROME repository measures it (arXiv 2202.05262, GE; experiments/py/eval_utils_counterfact.py
there): for each continued prompt the mean of 2/3 H_2 and 4/3 H_3, with H_n the entropy in bits of
the text's n-grams of words; then the mean over prompts. Reported there times 100. A text has 100
tokens with its prompt, and words are split sentence by sentence. The sentences are those of nltk's
Punkt without its list of English abbreviations, which would have to be downloaded.
"""

from collections import Counter

import numpy as np

from jaxedit.models.generate import continue_rows
from jaxedit.models.generated_text import decode_continuation, strip_special
from jaxedit.models.model import Model
from jaxedit.models.texts import list_texts

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # n -> the weight of H_n
TEXT_TOKENS = 100  # with the prompt
TOP_K = 5


def generate_texts(model: Model, prompts: list[str], seed: int = 0) -> list[str]:
    """Generate the texts of which fluency and consistency are measured.

    Each has its prompt and what follows it, TEXT_TOKENS tokens together, or fewer where the model
    ends it.

    Args:
      model: with or without edits.
      prompts: at least one.
      seed: of the sampling.

    Raises:
      ValueError: without prompts, or on one that is too long to be continued.
    """
    prompts, tokenizer = list_texts(prompts, "generation"), model.tokenizer
    rows = [tokenizer.encode(prompt) for prompt in prompts]
    # As many new tokens for every prompt, so that one program serves all; cut afterwards.
    found = continue_rows(model, rows, max_new_tokens=TEXT_TOKENS, top_k=TOP_K, seed=seed)
    texts = []
    for prompt, row, new in zip(prompts, rows, found, strict=True):
        tokens = new.tokens[: max(TEXT_TOKENS - len(row), 0)]
        texts.append(strip_special(tokenizer, prompt + decode_continuation(tokenizer, row, tokens)))
    return texts


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
    from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer  # slow to import

    sentences = PunktSentenceTokenizer().tokenize(text)
    words = [word for sentence in sentences for word in NLTKWordTokenizer().tokenize(sentence)]
    n_grams = zip(*(words[i:] for i in range(n)), strict=False)
    counts = np.array(list(Counter(n_grams).values()), float)
    if not len(counts):
        return 0.0
    share = counts / counts.sum()
    return float(-np.sum(share * np.log2(share)))
