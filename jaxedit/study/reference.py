"""What the paper (arXiv 2402.09656) found on its models, to be put beside a study: its numbers, and curves from a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.edits.journal import Journal

PAPER_TITLE = "What the paper found"


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
      ValueError: on a file or name that is not there, or something else under it; the message names the curves there are.
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
            raise ValueError(f'{file}: {name!r} is no curve ({error!r}); expected {{"x": [...], "y": [...]}}') from error
        if len(edits) != len(perplexity):
            raise ValueError(f"{file}: {name!r} has {len(edits)} x and {len(perplexity)} y")
        curves.append(Curve(name, edits, perplexity))
    return curves


def draw_curves(axes: Any, curves: Sequence[Curve], last: int) -> list[float]:
    """Draws curves up to a number of edits on a figure's axes; returns the perplexities that are drawn."""
    drawn = [curve.until(last) for curve in curves]
    for i, curve in enumerate(drawn):
        look = dict(color="0.55", linewidth=1.2, label=curve.name, zorder=1)
        axes.plot(curve.edits, curve.perplexity, ("-.", ":")[i % 2], **look)
    return [ppl for curve in drawn for ppl in curve.perplexity]


# Model -> unedited perplexity on ME-PPL_50 and ME-PPL_1k, and how many of 21,919 single ROME edits make it collapse.
UNEDITED = {"gpt2-xl": (68.77, 68.39, 77), "gpt-j-6b": (49.04, 50.34, 85), "llama-2-7b": (33.18, 37.25, 21)}
# Model, method -> of 107 normal and then 107 hard edits in sequence: the highest perplexity, the last, and after how many edits
# it first was over 1000 (None: never).
SEQUENCES = {
    ("gpt2-xl", "ft"): ((2.2e5, 4.5e4, 8), (4.5e5, 3.8e4, 8)),
    ("gpt2-xl", "mend"): ((5.9e6, 5.9e6, 36), (5.2e5, 3.3e5, 44)),
    ("gpt2-xl", "rome"): ((74.5, 74.5, None), (1.1e6, 7.7e5, 6)),
    ("gpt2-xl", "memit"): ((68.8, 68.8, None), (73.3, 73.2, None)),
    ("gpt-j-6b", "ft"): ((2200, 487, 88), (881, 216, None)),
    ("gpt-j-6b", "mend"): ((1.6e9, 1.1e9, 10), (2.0e5, 2.0e5, 10)),
    ("gpt-j-6b", "rome"): ((53.0, 53.0, None), (4.4e16, 8.4e13, 2)),
    ("gpt-j-6b", "memit"): ((50.9, 50.9, None), (8.2e10, 1.1e10, 44)),
    ("llama-2-7b", "ft"): ((2220, 1930, 62), (2480, 2050, 62)),
    ("llama-2-7b", "mend"): ((2.4e10, 4.4e4, 14), (1.5e8, 4.1e4, 16)),
    ("llama-2-7b", "rome"): ((37.5, 37.5, None), (1.3e12, 1.2e11, 2)),
    ("llama-2-7b", "memit"): ((79.2, 79.2, None), (1.5e6, 6.9e4, 28)),
}


class Paper(NamedTuple):
    """What the paper says of a model and method: sentences, and a table of 107 edits in sequence (empty: not in the paper)."""

    sentences: list[str]
    header: list[str]
    rows: list[list[str]]


def paper(journal: Journal) -> Paper | None:
    """The paper's numbers for a study's model and method; None for another model."""
    config: dict[str, Any] = journal.run["config"]
    model = next((name for name in UNEDITED if name in config["model"].lower()), None)
    if model is None:
        return None
    method = config["editor"]["method"]
    ppl_50, ppl_1k, n_collapsing = UNEDITED[model]
    sentences = [f"Unedited {model}: {ppl_50} on ME-PPL_50, {ppl_1k} on ME-PPL_1k."]
    if method == "rome":
        sentences.append(f"Of 21,919 single ROME edits {n_collapsing} took it over 1000.")
    rows = [
        [kind, f"{highest:,.4g}", f"{last:,.4g}", f"after {first}" if first else "never"]
        for kind, (highest, last, first) in zip(("normal", "hard"), SEQUENCES.get((model, method), ()), strict=False)
    ]
    return Paper(sentences, [f"107 edits by {method}", "highest", "last", "first over 1000"], rows)


def paper_lines(journal: Journal) -> list[str]:
    """The paper's numbers for a study's model and method, as Markdown; none for another model."""
    found = paper(journal)
    if found is None:
        return []
    lines = [f"## {PAPER_TITLE}", "", *found.sentences]
    if found.rows:
        lines += ["", f"| {' | '.join(found.header)} |", "|---|---:|---:|---:|"]
        lines += [f"| {' | '.join(row)} |" for row in found.rows]
    return [*lines, ""]
