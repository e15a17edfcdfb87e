"""Texts that are given to a model."""

from collections.abc import KeysView, Mapping, Set
from typing import Any


def list_texts(texts: Any, what: str) -> list[str]:
    """List texts, and check that they are some, and not one whose letters would be taken for them.

    Args:
      texts: a list, tuple, column or generator of texts.
      what: they are for, e.g. "generation".

    Raises:
      ValueError: on a single text, texts without an order, anything that is no text, or half a
        surrogate pair in one.
    """
    if isinstance(texts, str | bytes):
        raise ValueError(
            f"{what} needs a list of at least one text, got the text {texts[:40]!r} itself"
        )
    if isinstance(texts, Set | Mapping) and not isinstance(texts, KeysView):
        raise ValueError(f"{what} needs a list of texts, got a {type(texts).__name__} of them")
    try:
        found = list(texts)
    except TypeError as error:
        raise ValueError(f"{what} needs a list of texts, got {texts!r}") from error
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"{what} needs a list of texts; number {i} of it is {text!r}")
        check_surrogates(text, f"text {i} for {what}")
    return found


def check_surrogates(text: str, what: str) -> None:
    """Check that a text can be written in UTF-8.

    Args:
      text: anything that a string holds.
      what: the text is, for the message.

    Raises:
      ValueError: on half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds half a surrogate pair at character {error.start}, which is no text: "
            "take it out"
        ) from error
