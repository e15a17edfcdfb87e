"""What a record holds, checked against a form's `FIELDS` and made plain.

Records that pandas wrote have NaN where a value is missing, and 1.0 for a 1 in a column with gaps:
these are read as null and as 1.
"""

from collections.abc import Iterable
from typing import Any

from jaxedit.files import shorten_json

NUMBER_OR_TEXT = int | str | None  # a case's number in its data set; it may be missing
TYPE_NAMES = {
    str: "a string",
    list: "a list",
    dict: "an object",
    dict | None: "an object",
    str | list: "a string or a list",
    str | None: "a string",
    NUMBER_OR_TEXT: "a whole number or a string",
}


def read_fields(value: Any, expected: Any, what: str) -> Any:
    """Return a value as a form reads it: NaN as None, whole numbers where they are asked for.

    Args:
      value: of a record, or the record.
      expected: what `FIELDS` says of it.
      what: it is, for the message; "the record" for a whole one.

    Raises:
      ValueError: where it is not what is expected.
    """
    kind = type(expected) if isinstance(expected, dict | list) else expected
    value = _plain(value, isinstance(0, kind))
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{what} must be {TYPE_NAMES[kind]}, got {shorten_json(value)}")
    if isinstance(expected, list):
        return [read_fields(item, expected[0], f"{what}[{i}]") for i, item in enumerate(value)]
    if not isinstance(expected, dict):
        return value
    read = dict(value)
    for key, inner in expected.items():
        name = key.removesuffix("?")
        if key != name and is_missing(value.get(name)):
            read.pop(name, None)
            continue
        if name not in value:
            has = ", ".join(map(str, value)) or "no keys"
            raise ValueError(f"{what} has no {name!r}; it has {has}")
        path = name if what == "the record" else f"{what}.{name}"
        read[name] = read_fields(value[name], inner, path)
    return read


def _plain(value: Any, may_be_number: bool) -> Any:
    """Return None for a missing value, and a whole number as one where there may be numbers."""
    if is_missing(value):
        return None
    is_whole = may_be_number and isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def is_missing(value: Any) -> bool:
    """Return whether there is no value: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and value != value)


def not_blank(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that have something in them."""
    return tuple(text for text in texts if text.strip())
