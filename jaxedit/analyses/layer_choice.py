"""Which layer to edit: a sweep of single edits over layers, judged by what they do.

A layer is safe where nearly all of its edits leave the perplexity within a ratio of the unedited
one. Of the safe layers the one is chosen whose edits are the most accurate, on the bare prompt and
on its paraphrases; of equal ones that whose edits perturb ordinary texts least, which is known
before any evaluation (`jaxedit.metrics.perturbation`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxedit.study.record import StepRecord

SAFE_SHARE = 0.95  # of a layer's edits that must stay within the ratio


class LayerResult(NamedTuple):
    """What single edits at a layer did.

    Attributes:
      layer: which.
      n_edits: how many were tried.
      share_within: of them, those made that left the perplexity within the ratio.
      mean_accuracy: over facts, of `accuracy` and, where there are paraphrases, theirs.
      accuracy: the share of facts that are said on the bare prompt.
      paraphrase_accuracy: the share of paraphrases on which they are; None: there are none.
      median_ratio: the median of the perplexities over the unedited one.
      highest_ratio: the highest of them.
      perturbation: the mean relative perturbation.
    """

    layer: int
    n_edits: int
    share_within: float
    mean_accuracy: float
    accuracy: float
    paraphrase_accuracy: float | None
    median_ratio: float
    highest_ratio: float
    perturbation: float


def judge_layer(layer: int, records: Sequence[StepRecord], max_ratio: float) -> LayerResult:
    """Judge a layer by its single edits; one that could not be made counts as one that failed.

    Args:
      layer: which.
      records: of the edits, each with its perplexity.
      max_ratio: within which an edit is safe.

    Raises:
      ValueError: where none of the edits was made.
    """
    made = [record for record in records if record.is_made]
    if not made:
        raise ValueError(
            f"none of {len(records)} edits of layer {layer} was made; the first: {records[0].error}"
        )
    ratios = np.array([(record.perplexity or {})["ratio"] for record in made], float)
    ratios = np.where(np.isnan(ratios), np.inf, ratios)
    metrics = [record.metrics or {} for record in made]
    accuracies = [float(each["efficacy_accuracy"]) for each in metrics]
    paraphrases = [each["paraphrase_accuracy"] for each in metrics]
    both = [
        accuracy if paraphrase is None else (accuracy + paraphrase) / 2
        for accuracy, paraphrase in zip(accuracies, paraphrases, strict=True)
    ]
    known = [paraphrase for paraphrase in paraphrases if paraphrase is not None]
    return LayerResult(
        layer=layer,
        n_edits=len(records),
        share_within=float(np.sum(ratios < max_ratio)) / len(records),
        mean_accuracy=sum(both) / len(records),
        accuracy=sum(accuracies) / len(records),
        paraphrase_accuracy=float(np.mean(known)) if known else None,
        median_ratio=float(np.median(ratios)),
        highest_ratio=float(np.max(ratios)),
        perturbation=float(np.mean([float(record.relative_perturbation or 0) for record in made])),
    )


def choose_layer(results: Sequence[LayerResult]) -> LayerResult | None:
    """Choose among the safe layers; None: there is none."""
    safe = [result for result in results if result.share_within >= SAFE_SHARE]
    return min(safe, key=lambda result: (-result.mean_accuracy, result.perturbation), default=None)
