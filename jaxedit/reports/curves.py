"""Curves of perplexity against edits that others measured, from files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Curve(NamedTuple):
    """Perplexity after so many edits, as others measured it."""

    name: str
    edits: list[float]
    perplexity: list[float]

    def until(self, last: int) -> "Curve":
        """Its points up to a number of edits."""
        n = sum(edits <= last for edits in self.edits)
        return self._replace(edits=self.edits[:n], perplexity=self.perplexity[:n])


def read_curves(chosen: list[str]) -> list[Curve]:
    """Curves of JSON files {name: {"x": [...], "y": [...]}}, each chosen as FILE.json:NAME.

    Raises:
      ValueError: on a file or name that is not there, or something else under it; the message names
        the curves there are.
    """
    curves = []
    for each in chosen:
        path, _, name = each.partition(".json:")
        file = Path(f"{path}.json")
        if not name or not file.is_file():
            raise ValueError(f"--reference={each}: expected FILE.json:NAME of a file that is there")
        known = json.loads(file.read_text(encoding="utf-8"))
        if name not in known:
            raise ValueError(f"{file} has no curve {name!r}; it has {', '.join(known)}")
        try:
            edits, perplexity = (list(map(float, known[name][axis])) for axis in ("x", "y"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{file}: {name!r} is no curve ({error!r}); expected {{"x": [...], "y": [...]}}'
            ) from error
        if len(edits) != len(perplexity):
            raise ValueError(f"{file}: {name!r} has {len(edits)} x and {len(perplexity)} y")
        curves.append(Curve(name, edits, perplexity))
    return curves


def draw_curves(axes: Any, curves: Sequence[Curve], last: int) -> list[float]:
    """Draws curves up to a number of edits on a figure's axes; returns the perplexities that are
    drawn.
    """
    drawn = [curve.until(last) for curve in curves]
    for i, curve in enumerate(drawn):
        look = dict(color="0.55", linewidth=1.2, label=curve.name, zorder=1)
        axes.plot(curve.edits, curve.perplexity, ("-.", ":")[i % 2], **look)
    return [ppl for curve in drawn for ppl in curve.perplexity]
