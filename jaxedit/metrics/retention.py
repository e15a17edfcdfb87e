"""Retention: do the facts of earlier edits still hold after later ones."""

from typing import Any

from jaxedit.edits.request import Request
from jaxedit.metrics.facts import average_facts, evaluate_facts
from jaxedit.models.model import Model

SHOWN = ("probability_new", "efficacy_accuracy", "efficacy_success")


def evaluate_retention(
    model: Model, batches: list[list[Request]], kept: list[int]
) -> dict[str, dict[str, Any]]:
    """How the facts of kept edits hold in a model now: edit's number -> the entries of SHOWN, means
    over its requests.
    """
    return {
        str(number): {key: found[key] for key in SHOWN}
        for number, found in _means(model, batches, kept)
    }


def _means(model: Model, batches: list[list[Request]], kept: list[int]):
    """All requests in one call, then their means edit by edit."""
    requests = [request for number in kept for request in batches[number - 1]]
    found = iter(evaluate_facts(model, requests) if requests else [])
    for number in kept:
        yield number, average_facts([next(found) for _ in batches[number - 1]])
