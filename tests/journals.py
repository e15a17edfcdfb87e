"""Journals written by hand, with every kind of step, and the rows that a table shows of them."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.study.journal import Journal, open_journal, read_journal
from jaxedit.study.record import StepRecord

CONFIG = {
    "model": "tiny$x_{$",
    "mode": "sequential",
    "n_facts": 0,
    "eval": {"bos": False, "prompts": []},
    "editor": {"method": "c-rome", "layer": 3},
}
PHASES = ("edit", "apply", "facts", "generate", "perplexity")


def fact_metrics(probability: float, accuracy: bool = False) -> dict[str, Any]:
    """Make the metrics of a request without a true answer, paraphrases or neighbours."""
    return dict(
        probability_new=probability,
        probability_true=None,
        efficacy_accuracy=accuracy,
        efficacy_success=None,
        paraphrase_success=None,
        neighbourhood_success=None,
    )


def asked(step: int, subject: str, target: str, **fields: Any) -> StepRecord:
    """Make the record of a request that was not written."""
    request = dict(prompt="{} is in", subject=subject, target_new=target, n_requests=1)
    return StepRecord(**dict(step=step, case_id=step, kept=False, **request) | fields)


def measured(
    step: int, subject: str, target: str, ppl: float, *, probability: float = 0.9, **fields: Any
) -> StepRecord:
    """Make the record of an edit whose unedited model has perplexity 25; half a second a phase."""
    perplexity = dict(
        mean=ppl,
        pooled=ppl,
        n_non_finite=0 if math.isfinite(ppl) else 2,
        ratio=ppl / 25.0,
        delta_nll_nats=math.log(ppl / 25.0),
        delta_nll_stderr_nats=0.01,
    )
    found = dict(
        kept=True,
        perplexity=perplexity,
        metrics=fact_metrics(probability, accuracy=probability > 0.5),
        unedited_metrics=fact_metrics(0.0123),
        continuation=" Rome.",
        unedited_continuation=" Paris.",
        optimisation=dict(loss=0.04, denominator=0.51 * step, n_steps=20),
        edit_norm=2.5,
        time_s=dict.fromkeys(PHASES, 0.5),
    )
    return asked(step, subject, target, **found | fields)


def damaging(step: int, subject: str, target: str, ppl: float, **fields: Any) -> StepRecord:
    """Make the record of an edit that the guard rolled back."""
    found = dict(
        kept=False, guard_code="ppl_ratio", guard_reason=f"perplexity {ppl / 25:.3g} times"
    )
    return measured(step, subject, target, ppl, **found | fields)


def baseline(ppl: float = 25.0, **fields: Any) -> StepRecord:
    """Make the record of the unedited model."""
    perplexity: Any = dict(mean=ppl, pooled=ppl, n_non_finite=0)
    return StepRecord(kind="baseline", step=0, perplexity=perplexity, **fields)


def write_journal(
    folder: Path,
    steps: Sequence[StepRecord],
    config: dict[str, Any] = CONFIG,
    first: StepRecord | None = None,
) -> Journal:
    """Write a journal whose first record is the unedited model's; read it."""
    run = {"config": config, "model_fingerprint": "abc", "n_skipped_facts": 0}
    journal = open_journal(folder, run)
    journal.append(first or baseline(), {"nll_nats": np.ones(2)}, {})
    for step in steps:
        journal.append(step, {}, {})
    return read_journal(folder)


ERROR = "the request has 300 tokens, more than the 256 positions"
NOT_POSSIBLE = asked(3, "too long", "Rome", error=ERROR, time_s=dict(edit=0.25))
SKIPPED = asked(7, "Hard", "Case", skipped="screening", predicted_perturbation=0.34567, time_s={})
STEPS = [
    measured(1, "The Eiffel Tower", "Rome", 25.5, probability=0.9876),
    damaging(2, "a|b $x_{$ [link](u)", "5|\\6", 4321.5, continuation="|\n|-|\r\n[x]"),
    NOT_POSSIBLE,
    damaging(
        4,
        "BP",
        "Munich",
        math.inf,
        probability=0.0,
        guard_code="non_finite_loss",
        guard_reason="the loss of 2 texts is not finite",
    ),
    measured(5, "東京 [Corp]", "Paris", 26.25, probability=0.25),
    damaging(6, "Zürich", "Oslo", 60.0, probability=0.75, kept=True),
    SKIPPED,
]
MADE = [step for step in STEPS if step.is_made]
SINGLE = {**CONFIG, "mode": "single"}


def as_single(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """Return the steps as a study of single edits has them: none is kept."""
    return [dataclasses.replace(step, kept=False) for step in steps]


ROWS = [
    ["1", "The Eiffel Tower is in → Rome", "25.5", "1.02", "0.012 → 0.988", "100%", "0.51", "kept"],
    [
        "2",
        "a|b $x_{$ [link](u) is in → 5|\\6",
        "4,322",
        "172.9",
        "0.012 → 0.900",
        "100%",
        "1.02",
        "rolled back",
    ],
    ["3", "too long is in → Rome", "", "", "", "", "", "not edited"],
    ["4", "BP is in → Munich", "inf", "inf", "0.012 → 0.000", "0%", "2.04", "rolled back"],
    ["5", "東京 [Corp] is in → Paris", "26.2", "1.05", "0.012 → 0.250", "0%", "2.55", "kept"],
    [
        "6",
        "Zürich is in → Oslo",
        "60.0",
        "2.4",
        "0.012 → 0.750",
        "100%",
        "3.06",
        "kept, damaging",
    ],
    ["7", "Hard is in → Case", "", "", "", "", "", "skipped"],
]
