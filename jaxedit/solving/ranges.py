"""The ranges that hyper-parameters lie in, declared beside their types.

    v_lr: Annotated[float, POSITIVE] = 0.5

A number without such a range is finite and not negative. Bounds are compared so that NaN is within
none, and the largest number is float32's, in which the devices compute.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxedit.rounding import LARGEST_FLOAT

LARGEST_INT = int(np.iinfo(np.int32).max)


class Range(NamedTuple):
    """An interval of numbers.

    Attributes:
      expected: the interval in words, for messages.
      low: its lower end.
      high: its upper end, which belongs to it.
      has_low: whether the lower end belongs to it.
    """

    expected: str
    low: float
    high: float = LARGEST_FLOAT
    has_low: bool = True

    def holds(self, number: float) -> bool:
        """Tell whether a number is in the interval; NaN is in none."""
        is_over = number >= self.low if self.has_low else number > self.low
        return bool(is_over and number <= self.high)


NOT_NEGATIVE = Range("a finite number, 0 or more", 0.0)
POSITIVE = Range("a positive number", 0.0, has_low=False)
AT_LEAST_ONE = Range("a number, 1 or more", 1.0)
OVER_ONE = Range("a number over 1", 1.0, has_low=False)
SHARE = Range("a share over 0, at most 1", 0.0, 1.0, has_low=False)
SEED = Range("a whole number of 32 bits", 0.0, float(np.iinfo(np.uint32).max))
MINUS_COUNT = Range(
    "-k, to stop at the k-th pass with the target the likeliest", -LARGEST_FLOAT, -1.0
)


def check_ranges(hyper: Any) -> None:
    """Raise a ValueError where a number of hyper-parameters, a dataclass, is out of its range.

    The values of a mapping are looked at too; lists (layers) depend on the model and are not.
    """
    types = typing.get_type_hints(type(hyper), include_extras=True)
    for field in dataclasses.fields(hyper):
        found = [each for each in _metadata(types[field.name]) if isinstance(each, Range)]
        limits = found[0] if found else NOT_NEGATIVE
        # Whole numbers where no fraction is meant have 32 bits, unless their range says more.
        most_whole = LARGEST_INT
        if LARGEST_INT < limits.high < LARGEST_FLOAT:
            most_whole = limits.high
        if _may_be(types[field.name], float):
            most_whole = LARGEST_FLOAT
        value = getattr(hyper, field.name)
        numbers = list(value.values()) if isinstance(value, Mapping) else [value]
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            is_too_large = isinstance(number, int) and abs(number) > most_whole
            if is_too_large or not limits.holds(number):
                most = f" of at most {most_whole:.10g}" if is_too_large else ""
                raise ValueError(f"{field.name}={value!r}: expected {limits.expected}{most}")


def _metadata(kind: Any) -> tuple[Any, ...]:
    """Return what is declared beside a type by `Annotated`."""
    return getattr(kind, "__metadata__", ())


def _may_be(kind: Any, wanted: type) -> bool:
    """Tell whether a type, or one inside it, is the wanted one."""
    return kind is wanted or any(_may_be(inner, wanted) for inner in typing.get_args(kind))
