"""Consistency against the ROME repository's expression in float64, from files of its form."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from jaxedit.edits.request import Request
from jaxedit.metrics.consistency import IDF, SNIPPETS, VOCABULARY, consistency, read_references

WORDS = {"paris": 0, "is": 1, "the": 2, "capital": 3, "munich": 4, "beer": 5}
WEIGHT = [2.5, 1.0, 1.1, 1.9, 3.0, 2.75]
HEADER = b"\x93NUMPY\x01\x00\x56\x00{'descr': '<f8', 'fortran_order': False, 'shape': %-34s}\n"
REQUEST = Request("{} is in", "BP", "Munich", relation="P159", target_id="Q1726")


@pytest.fixture
def folder(tmp_path):
    """Make a folder of files in the repository's form."""
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
    """Compute `tfidf_similarity` of eval_utils_counterfact.py: the cosine of tf * idf."""
    vectors = []
    for text in (a, b):
        words = re.findall(r"(?u)\b\w\w+\b", text.lower())
        vectors.append([words.count(word) * WEIGHT[i] for word, i in WORDS.items()])
    dot = sum(x * y for x, y in zip(*vectors, strict=True))
    return dot / math.prod(math.sqrt(sum(x * x for x in vector)) for vector in vectors)


def test_consistency_is_the_cosine_with_the_joined_reference_texts(folder):
    texts = ["BP is in Munich, the capital of beer", "BP and Paris"]
    expected = published(" ".join(texts), "The beer is in Munich. Munich!")
    assert 0.5 < expected < 1
    found = consistency(read_references(str(folder)), REQUEST, texts)
    assert found == pytest.approx(expected, rel=1e-12)


def test_texts_without_a_known_word_are_not_consistent_at_all(folder):
    assert consistency(read_references(str(folder)), REQUEST, ["zzz"]) == 0


@pytest.mark.parametrize(
    "request_",
    [dataclasses.replace(REQUEST, target_id="Q585"), Request("{} is in", "BP", "Munich")],
)
def test_there_is_no_consistency_without_reference_texts(folder, request_):
    assert consistency(read_references(str(folder)), request_, ["Munich"]) is None


def test_a_file_that_is_missing_is_named(folder):
    (folder / IDF).unlink()
    message = r"idf\.npy is not there; expected a folder or address with attribute_snippets"
    with pytest.raises(ValueError, match=message):
        read_references(str(folder))


def test_files_of_another_form_are_refused(folder):
    (folder / SNIPPETS).write_text('[{"relation": 1}]')
    with pytest.raises(ValueError, match="does not hold the ROME repository's reference texts"):
        read_references(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (SNIPPETS, b"{}", "must hold a list"),
        (SNIPPETS, b'[{"relation_id": [], "target_id": "Q1", "samples": []}]', "must be strings"),
        (SNIPPETS, b'[{"relation_id": "P1", "target_id": "Q1", "samples": "ab"}]', "record 0"),
        (VOCABULARY, b"[]", "must hold an object"),
        (VOCABULARY, b'{"a": true}', "the column of each word"),
        (VOCABULARY, b'{"a": 0, "b": 0}', "are not 0 to 1, each once"),
        (IDF, b"", "is no array in NumPy's .npy form"),
        (IDF, b"\x93NUMPY\x01\x00", "is no array in NumPy's .npy form"),
        (IDF, HEADER % b"(50000000000,)", "400,000,000,000 bytes; 0 are there"),
        (IDF, HEADER % b"(1,)" + bytes(8), r"has the shape \(1,\); expected a finite number for"),
        (IDF, HEADER % b"(6,)" + b"\xff" * 48, "expected a finite number"),
    ],
)
def test_a_file_with_another_content_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*{message}"):
        read_references(str(folder))
