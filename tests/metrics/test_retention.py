"""Retention: the facts of kept edits, each edit's by themselves, averaged over its requests."""

import pytest

from jaxedit import Request
from jaxedit.metrics.facts import average_facts, evaluate_facts
from jaxedit.metrics.retention import SHOWN, evaluate_retention

BATCHES = [
    [Request("{} lives in", "Bob", "Paris", target_true="London")],
    [Request("{} is based in", "Sony", "Rome", target_true="London")],
    [Request("{} lives in", name, "Paris", target_true="Oslo") for name in ("Ann", "Tim")],
]


def test_kept_edits_have_the_means_of_their_own_requests(golden):
    found = evaluate_retention(golden("llama"), BATCHES, kept=[1, 3])
    assert list(found) == ["1", "3"]
    for number in (1, 3):
        means = average_facts(evaluate_facts(golden("llama"), BATCHES[number - 1]))
        assert found[str(number)] == {key: pytest.approx(means[key], rel=1e-4) for key in SHOWN}


def test_without_kept_edits_nothing_is_evaluated():
    assert evaluate_retention(None, BATCHES, kept=[]) == {}
