"""Consistency of generated text with reference texts about things of which the new fact holds.

As the ROME repository measures it (arXiv 2202.05262, RS): the cosine of the TF-IDF vectors of a
fact's continued generation prompts, joined, and of reference texts, joined: those of its
`attribute_snippets.json` about other subjects that have the new answer in the same relation. The
vocabulary and the inverse document frequencies are that repository's as well.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from jaxedit.downloads import download, is_url
from jaxedit.edits.request import Request
from jaxedit.files import expand_home, read_json, shorten_json
from jaxedit.models.texts import list_texts
from jaxedit.npy import read_npy

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

T = TypeVar("T")

SNIPPETS, VOCABULARY, IDF = "attribute_snippets.json", "tfidf_vocab.json", "idf.npy"


class ReferenceTexts(NamedTuple):
    """The ROME repository's reference texts, and its vectoriser of them.

    Attributes:
      texts: (relation, target_id) -> the texts.
      vectorizer: text to TF-IDF vector.
    """

    texts: dict[tuple[str, str], list[str]]
    vectorizer: "TfidfVectorizer"


def read_references(source: str | os.PathLike[str]) -> ReferenceTexts:
    """Read the three files of the ROME repository.

    Args:
      source: a folder, or an address under which they lie.

    Raises:
      ValueError: where one is missing or holds something else.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

    source = expand_home(source)
    texts = _read(source, SNIPPETS, _read_snippets)
    vocabulary = _read(source, VOCABULARY, _read_vocabulary)
    idf = _read(source, IDF, read_npy)
    if idf.shape != (len(vocabulary),) or not np.all(np.isfinite(idf)):
        raise ValueError(
            f"{source}: {IDF} has the shape {idf.shape}; expected a finite number for each of the "
            f"{len(vocabulary)} words of {VOCABULARY}"
        )
    vectorizer = TfidfVectorizer(vocabulary=vocabulary)
    vectorizer.idf_ = idf
    return ReferenceTexts(texts, vectorizer)


def _read(source: str, name: str, read: Callable[[Path], T]) -> T:
    """Read a file of a folder or address by its reader."""
    if is_url(source):
        return download(f"{source.rstrip('/')}/{name}", read)
    path = Path(source, name)
    if not path.is_file():
        raise ValueError(
            f"{path} is not there; "
            f"expected a folder or address with {SNIPPETS}, {VOCABULARY} and {IDF}"
        )
    return read(path)


def _read_snippets(path: Path) -> dict[tuple[str, str], list[str]]:
    """Read the reference texts by relation and target.

    Raises:
      ValueError: on another content.
    """
    texts: dict[tuple[str, str], list[str]] = {}
    for i, record in enumerate(read_json(path, list)):
        try:
            key = record["relation_id"], record["target_id"]
            found = [sample["text"] for sample in record["samples"]]
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path} does not hold the ROME repository's reference texts: record {i} (counted "
                f"from 0) is {shorten_json(record)} ({error!r})"
            ) from error
        if not all(isinstance(text, str) for text in (*key, *found)):
            raise ValueError(
                f"{path}, record {i} (counted from 0): relation_id, target_id and each text must "
                f"be strings; got {shorten_json(record)}"
            )
        texts.setdefault(key, []).extend(found)
    return texts


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Read which word is which column.

    Raises:
      ValueError: on another content.
    """
    vocabulary = read_json(path)
    columns = list(vocabulary.values())
    if not columns or not all(type(column) is int for column in columns):
        raise ValueError(f"{path} does not hold the column of each word, a whole number")
    if sorted(columns) != list(range(len(columns))):
        raise ValueError(f"{path}: its columns are not 0 to {len(columns) - 1}, each once")
    return vocabulary


def consistency(references: ReferenceTexts, request: Request, texts: list[str]) -> float | None:
    """Compute a fact's RS, from 0 to 1; None where there is no reference text for it.

    Args:
      references: as read.
      request: whose relation and target_id say which of them count.
      texts: what the model generates, prompts included.

    Raises:
      ValueError: on a text instead of a list of texts.
    """
    texts = list_texts(texts, "consistency")
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
