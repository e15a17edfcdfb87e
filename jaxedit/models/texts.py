"""Texts that are given to a model."""

from typing import Any


def check_texts(texts: Any, what: str) -> None:
    """Check that these are texts, and not one whose letters would be taken for texts.

    Args:
      texts: a list, tuple or column of texts.
      what: they are for, e.g. "generation".

    Raises:
      ValueError: on a single text, anything that is no text, or half a surrogate pair in one.
    """
    if isinstance(texts, str | bytes):
        raise ValueError(
            f"{what} needs a list of at least one text, got the text {texts[:40]!r} itself"
        )
    try:
        found = list(texts)
    except TypeError as error:
        raise ValueError(f"{what} needs a list of texts, got {texts!r}") from error
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"{what} needs a list of texts; number {i} of it is {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {i} for {what} holds half a surrogate pair, which is no text"
            ) from error
