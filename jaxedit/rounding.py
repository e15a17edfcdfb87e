"""Whole numbers: checked, rounded up, and read from text."""

import numbers
from typing import Any

import numpy as np

LARGEST_FLOAT = float(np.finfo(np.float32).max)  # the devices compute in float32


def ceil_div(n: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-n // divisor)


def round_up(n: int, step: int) -> int:
    """Return the least multiple of `step` that is at least n."""
    return step * ceil_div(n, step)


def next_power_of_two(n: int) -> int:
    """Return the least power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def read_whole_number(text: str, most: int = 10**9) -> int | None:
    """Read a whole number written in the digits 0 to 9; None where it is none, or over `most`.

    Python's `isdigit` takes a superscript for a digit and its `int` does not; a number of thousands
    of digits is an error of its own.
    """
    is_number = text.isascii() and text.isdecimal() and len(text) <= 20
    return int(text) if is_number and int(text) <= most else None


def is_whole_number(value: Any) -> bool:
    """Return whether a value is a whole number of Python or NumPy; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_whole_number(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Check that an argument is a whole number between two bounds.

    Args:
      name: of the argument, for the message.
      value: that was given.
      least: it may be.
      most: it may be; None: any.

    Raises:
      ValueError: where it is not.
    """
    in_range = is_whole_number(value) and least <= value and (most is None or value <= most)
    if not in_range:
        bound = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}={value!r}: expected a whole number, {bound}")
