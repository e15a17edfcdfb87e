"""Curves of perplexity against edits that others measured, from files."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.files import read_json, shorten_json


class Curve(NamedTuple):
    """Perplexity after so many edits, as others measured it."""

    name: str
    edits: list[float]
    perplexity: list[float]

    def up_to(self, last: int) -> "Curve":
        """Return the points up to a number of edits."""
        n = sum(edits <= last for edits in self.edits)
        return self._replace(edits=self.edits[:n], perplexity=self.perplexity[:n])


def read_curves(chosen: list[str]) -> list[Curve]:
    """Read curves of JSON files {name: {"x": [...], "y": [...]}}, chosen as FILE.json:NAME.

    Raises:
      ValueError: on a file or name that is not there, or something else under it; the message
        names the curves there are.
    """
    curves = []
    for choice in chosen:
        # The file and the name in it, which may hold anything but ".json:".
        path, _, name = choice.partition(".json:")
        file = Path(f"{path}.json")
        if not name or not file.is_file():
            raise ValueError(
                f"--reference={choice}: expected FILE.json:NAME of a file that is there"
            )
        known = read_json(file)
        if name not in known:
            has = ", ".join(known)[:200] or "none"
            raise ValueError(f"{file} has no curve {name!r}; it has {has}")
        # Its numbers, "inf" where one is not finite.
        try:
            edits, perplexity = (_to_numbers(known[name][axis]) for axis in ("x", "y"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f'{file}: {name!r} is no curve ({error!r}); expected {{"x": [...], "y": [...]}}'
            ) from error
        if len(edits) != len(perplexity):
            raise ValueError(f"{file}: {name!r} has {len(edits)} x and {len(perplexity)} y")
        curves.append(Curve(name, edits, perplexity))
    return curves


def _to_numbers(values: Any) -> list[float]:
    """Read the numbers of a curve; letters, true and NaN are none."""
    if not isinstance(values, list):
        raise TypeError(f"{shorten_json(values)} is no list")
    numbers = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise TypeError(f"{shorten_json(value)} is no number")
        numbers.append(float(value))
        if math.isnan(numbers[-1]):
            raise ValueError("NaN is no number")
    return numbers
