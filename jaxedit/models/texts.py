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
        check_surrogates(text, f"text {i} for {what}")


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
