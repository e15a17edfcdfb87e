"""Consistency of generated text with reference texts about things of which the new fact holds.

As the ROME repository measures it (arXiv 2202.05262, RS): the cosine of the TF-IDF vectors of a
fact's continued generation prompts, joined, and of reference texts, joined: those of its
`attribute_snippets.json` about other subjects that have the new answer in the same relation. The
vocabulary and the inverse document frequencies are that repository's as well.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxedit.edits.request import Request
from jaxedit.files import download, is_url
from jaxedit.models.texts import check_texts

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

SNIPPETS, VOCABULARY, IDF = "attribute_snippets.json", "tfidf_vocab.json", "idf.npy"


class ReferenceTexts(NamedTuple):
    """The ROME repository's reference texts, and its vectoriser of them.

    Attributes:
      texts: (relation, target_id) -> the texts.
      vectorizer: text to TF-IDF vector.
    """

    texts: dict[tuple[str, str], list[str]]
    vectorizer: "TfidfVectorizer"


def read_references(source: str) -> ReferenceTexts:
    """Read the three files of the ROME repository.

    Args:
      source: a folder, or an address under which they lie.

    Raises:
      ValueError: where one is missing or holds something else.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

    paths = [
        download(f"{source.rstrip('/')}/{name}") if is_url(source) else Path(source, name)
        for name in (SNIPPETS, VOCABULARY, IDF)
    ]
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"{path} is not there; "
                f"expected a folder or address with {SNIPPETS}, {VOCABULARY} and {IDF}"
            )
    texts: dict[tuple[str, str], list[str]] = {}
    try:
        for each in json.loads(paths[0].read_text(encoding="utf-8")):
            found = texts.setdefault((each["relation_id"], each["target_id"]), [])
            found += [sample["text"] for sample in each["samples"]]
        vectorizer = TfidfVectorizer(vocabulary=json.loads(paths[1].read_text(encoding="utf-8")))
        vectorizer.idf_ = np.load(paths[2])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{source} does not hold the ROME repository's reference texts ({error!r})"
        ) from error
    return ReferenceTexts(texts, vectorizer)


def consistency(references: ReferenceTexts, request: Request, texts: list[str]) -> float | None:
    """Compute a fact's RS, from 0 to 1; None where there is no reference text for it.

    Args:
      references: as read.
      request: whose relation and target_id say which of them count.
      texts: what the model generates, prompts included.

    Raises:
      ValueError: on a text instead of a list of texts.
    """
    check_texts(texts, "consistency")
    reference_texts = references.texts.get((request.relation or "", request.target_id or ""))
    if not reference_texts:
        return None
    generated = _tfidf(references.vectorizer, " ".join(texts))
    reference = _tfidf(references.vectorizer, " ".join(reference_texts))
    norm = float(np.linalg.norm(generated) * np.linalg.norm(reference))
    return float(generated @ reference) / norm if norm else 0.0


def _tfidf(vectorizer: Any, text: str) -> np.ndarray:
    """Return a text's TF-IDF vector over the vocabulary."""
    return vectorizer.transform([text]).toarray()[0]
