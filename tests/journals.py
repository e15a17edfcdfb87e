"""Journals written by hand, with every kind of step, and the rows that a table shows of them."""

import math

import numpy as np

from jaxedit.study.journal import open_journal

CONFIG = {
    "model": "tiny$x_{$",
    "mode": "sequential",
    "n_facts": 0,
    "editor": {"method": "c-rome", "layer": 3},
}


def fact(probability: float, greedy: bool = False) -> dict:
    return dict(
        probability_new=probability,
        probability_true=None,
        greedy_new=greedy,
        efficacy=None,
        paraphrase=None,
        neighbourhood=None,
    )


def asked(step: int, subject: str, target: str, prompt: str = "{} is in") -> dict:
    return dict(
        step=step,
        case_id=step,
        prompt=prompt,
        subject=subject,
        target_new=target,
        target_true=None,
        kept=False,
        guard="",
    )


def measured(
    step: int,
    subject: str,
    target: str,
    ppl: float,
    *,
    kept=True,
    guard="",
    new=0.9,
    says=" Rome.",
    base=25.0,
    broken=0,
) -> dict:
    """A record as the loop writes it; half a second for each phase."""
    return asked(step, subject, target) | dict(
        kept=kept,
        guard=guard,
        perplexity=dict(
            mean=ppl,
            pooled=ppl,
            ratio=ppl / base,
            delta_nll_nats=0.1,
            delta_nll_stderr_nats=0.01,
            n_non_finite=broken,
        ),
        fact=fact(new, greedy=new > 0.5),
        before=fact(0.0123),
        says=says,
        editor=dict(loss=0.04, denominator=0.51 * step, n_steps=20),
        edit_norm=2.5,
        time_s=dict(edit=0.5, apply=0.5, facts=0.5, generate=0.5, perplexity=0.5),
    )


ERROR = "the request has 300 tokens, more than the 256 positions"
STEPS = [
    measured(1, "The Eiffel Tower", "Rome", 25.5, new=0.9876, says=" Rome."),
    measured(
        2,
        "a|b $x_{$ [link](u)",
        "5|\\6",
        4321.5,
        kept=False,
        guard="perplexity 173 times",
        says="|\n|-|\r\n[x]",
    ),
    asked(3, "too long", "Rome") | dict(error=ERROR, time_s=dict(edit=0.25)),
    measured(
        4,
        "BP",
        "Munich",
        math.inf,
        kept=False,
        guard="the loss of 2 texts is not finite",
        new=0.0,
        broken=2,
    ),
    measured(5, "東京 [Corp]", "Paris", 26.25, new=0.25, says=" Rome"),
    measured(6, "Zürich", "Oslo", 60.0, guard="perplexity 2.4 times", new=0.75),
]


def write(folder, steps, config=CONFIG, base=25.0):
    journal = open_journal(
        folder, {"config": config, "model_fingerprint": "abc", "n_skipped_facts": 0}
    )
    journal.append(
        {"step": 0, "perplexity": {"mean": base, "pooled": base, "n_non_finite": 0}},
        {"nll_nats": np.ones(2)},
        {},
    )
    for step in steps:
        journal.append(step, {}, {})
    return folder


ROWS = [
    ["1", "The Eiffel Tower is in → Rome", "25.5", "1.02", "0.012 → 0.988", "yes", "0.51", "kept"],
    [
        "2",
        "a|b $x_{$ [link](u) is in → 5|\\6",
        "4,322",
        "172.9",
        "0.012 → 0.900",
        "yes",
        "1.02",
        "rolled back",
    ],
    ["3", "too long is in → Rome", "", "", "", "", "", "not edited"],
    ["4", "BP is in → Munich", "inf", "inf", "0.012 → 0.000", "no", "2.04", "rolled back"],
    ["5", "東京 [Corp] is in → Paris", "26.2", "1.05", "0.012 → 0.250", "no", "2.55", "kept"],
    ["6", "Zürich is in → Oslo", "60.0", "2.4", "0.012 → 0.750", "yes", "3.06", "kept, damaging"],
]
