"""What the paper (arXiv 2402.09656) found on its models, to be put beside a study."""

from typing import Any, NamedTuple

from jaxedit.study.journal import Journal

PAPER_TITLE = "What the paper found"

# Model -> unedited perplexity on ME-PPL_50 and ME-PPL_1k, and how many of 21,919 single ROME edits
# make it collapse.
UNEDITED = {
    "gpt2-xl": (68.77, 68.39, 77),
    "gpt-j-6b": (49.04, 50.34, 85),
    "llama-2-7b": (33.18, 37.25, 21),
}
# Model, method -> of 107 normal and then 107 hard edits in sequence: the highest perplexity, the
# last, and after how many edits it first was over 1000 (None: never).
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


class PaperNumbers(NamedTuple):
    """What the paper says of a model and method.

    Attributes:
      sentences: about the unedited model and single edits.
      header: of a table of 107 edits in sequence.
      rows: of it; empty where the paper has no such sequence.
    """

    sentences: list[str]
    header: list[str]
    rows: list[list[str]]


def paper_numbers(journal: Journal) -> PaperNumbers | None:
    """Find the paper's numbers for a study's model and method; None for others."""
    config: dict[str, Any] = journal.run["config"]
    model = next((name for name in UNEDITED if name in config["model"].lower()), None)
    if model is None or config.get("alternatives"):
        return None
    method = config["editor"]["method"]
    ppl_50, ppl_1k, n_collapsing = UNEDITED[model]
    sentences = [f"Unedited {model}: {ppl_50} on ME-PPL_50, {ppl_1k} on ME-PPL_1k."]
    if method == "rome":
        sentences.append(f"Of 21,919 single ROME edits {n_collapsing} took it over 1000.")
    sequences = SEQUENCES.get((model, method), ())
    rows = [
        [kind, f"{highest:,.4g}", f"{last:,.4g}", f"after {first}" if first else "never"]
        for kind, (highest, last, first) in zip(("normal", "hard"), sequences, strict=False)
    ]
    header = [f"107 edits by {method}", "highest", "last", "first over 1000"]
    return PaperNumbers(sentences, header, rows)
