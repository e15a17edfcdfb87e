"""Consistency against the ROME repository's expression, written out in float64, from files of its
form.
"""

import json
import math
import re

import numpy as np
import pytest

from jaxedit.edits.request import Request
from jaxedit.metrics.consistency import IDF, SNIPPETS, VOCABULARY, consistency, read_references

WORDS = {"paris": 0, "is": 1, "the": 2, "capital": 3, "munich": 4, "beer": 5}
WEIGHT = [2.5, 1.0, 1.1, 1.9, 3.0, 2.75]
REQUEST = Request("{} is in", "BP", "Munich", relation="P159", target_id="Q1726")


@pytest.fixture
def folder(tmp_path):
    snippets = [
        {
            "relation_id": "P159",
            "target_id": "Q1726",
            "samples": [{"text": "The beer is in Munich."}, {"text": "Munich!"}],
        },
        {"relation_id": "P159", "target_id": "Q90", "samples": [{"text": "Paris is the capital"}]},
    ]
    (tmp_path / SNIPPETS).write_text(json.dumps(snippets))
    (tmp_path / VOCABULARY).write_text(json.dumps(WORDS))
    np.save(tmp_path / IDF, np.array(WEIGHT))
    return tmp_path


def published(a: str, b: str) -> float:
    """`tfidf_similarity` of eval_utils_counterfact.py: term frequency times idf, and the cosine."""
    vectors = []
    for text in (a, b):
        words = re.findall(r"(?u)\b\w\w+\b", text.lower())
        vectors.append([words.count(word) * WEIGHT[i] for word, i in WORDS.items()])
    dot = sum(x * y for x, y in zip(*vectors, strict=True))
    return dot / math.prod(math.sqrt(sum(x * x for x in vector)) for vector in vectors)


def test_of_texts(folder):
    texts = ["BP is in Munich, the capital of beer", "BP and Paris"]
    expected = published(" ".join(texts), "The beer is in Munich. Munich!")
    assert 0.5 < expected < 1
    assert consistency(read_references(str(folder)), REQUEST, texts) == pytest.approx(
        expected, rel=1e-12
    )


def test_without_words_or_references(folder):
    references = read_references(str(folder))
    assert consistency(references, REQUEST, ["zzz"]) == 0
    assert (
        consistency(
            references,
            Request("{} is in", "BP", "Oslo", relation="P159", target_id="Q585"),
            ["Munich"],
        )
        is None
    )
    assert consistency(references, Request("{} is in", "BP", "Munich"), ["Munich"]) is None


def test_what_cannot_be_read(folder):
    (folder / IDF).unlink()
    with pytest.raises(
        ValueError,
        match=r"idf\.npy is not there; expected a folder or address with attribute_snippets",
    ):
        read_references(str(folder))
    np.save(folder / IDF, np.array(WEIGHT))
    (folder / SNIPPETS).write_text('[{"relation": 1}]')
    with pytest.raises(ValueError, match="does not hold the ROME repository's reference texts"):
        read_references(str(folder))
