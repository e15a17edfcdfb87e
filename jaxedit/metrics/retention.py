"""Retention: do the facts of earlier edits still hold after later ones."""

from typing import Any

from jaxedit.edits.request import Request
from jaxedit.metrics.facts import average_facts, evaluate_facts
from jaxedit.models.model import Model

SHOWN = ("probability_new", "efficacy_accuracy", "efficacy_success")


def evaluate_retention(
    model: Model, batches: list[list[Request]], kept: list[int]
) -> dict[str, dict[str, Any]]:
    """Evaluate how the facts of kept edits hold in a model now, all in one packed call.

    Args:
      model: with the edits that were made since.
      batches: the requests of each edit of a study.
      kept: numbers of edits, the first edit being 1.

    Returns:
      An edit's number -> the metrics of SHOWN, means over its requests.
    """
    requests = [request for number in kept for request in batches[number - 1]]
    if not requests:
        return {}
    found = iter(evaluate_facts(model, requests))
    retention = {}
    for number in kept:
        means = average_facts([next(found) for _ in batches[number - 1]])
        retention[str(number)] = {key: means[key] for key in SHOWN}
    return retention
