"""What a study measures of a model besides facts: perplexity where due, the rest now and then.

The rest is the KL to the unedited model, fluency, consistency, what the model says about an edit's
facts, and continuations of the study's own prompts.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from jaxedit.datasets import read_texts
from jaxedit.distributed import broadcast_flag
from jaxedit.edits.request import Request
from jaxedit.metrics.consistency import consistency
from jaxedit.metrics.divergence import kl_divergence
from jaxedit.metrics.fluency import fluency, generate_texts
from jaxedit.metrics.generated import generate_answers, generated_metrics
from jaxedit.metrics.perplexity import Perplexity, perplexity
from jaxedit.models.generate import continue_texts
from jaxedit.models.model import Model
from jaxedit.study.context import StudyContext
from jaxedit.study.forecast import Forecast, must_measure
from jaxedit.study.record import BaselinePerplexity, PerplexityRecord, StepRecord

ANSWER_TOKENS = 8  # of a continuation of a fact's prompt, for people to read
PROMPT_TOKENS = 20  # of a continuation of the study's own prompts


def continuations(model: Model, prompts: Sequence[str], n_tokens: int) -> list[str]:
    """Return what a model says to prompts, without them."""
    return continue_texts(model, list(prompts), max_new_tokens=n_tokens)


def needs_perplexity(
    context: StudyContext,
    step: int,
    forecast: Forecast,
    perturbation: float,
    predicted: Mapping[str, float] | None,
) -> bool:
    """Tell whether the perplexity is due after an edit.

    It is every k edits or where the prediction asks for it, after the last edit, and after one that
    perturbs much.

    Args:
      context: the study's.
      step: the edit's number.
      forecast: of the records before.
      perturbation: its relative perturbation.
      predicted: its `predicted_change`; None: it is not predicted.
    """
    if step == len(context.batches) or context.guard.needs_perplexity(perturbation):
        return True
    every = context.evaluation.perplexity_every
    if every is not None:
        return step % every == 0
    # Of several processes all go by the first one's: theirs may differ in the last bit.
    return broadcast_flag(predicted is None or must_measure(forecast, predicted, context.guard))


def due_measurements(context: StudyContext, step: int, is_measured: bool) -> list[str]:
    """List what is due besides facts and perplexity: "kl", "fluency", "generated", "prompts".

    Args:
      context: the study's.
      step: the edit's number.
      is_measured: whether the perplexity was measured after it.
    """
    evaluation = context.evaluation
    every = {
        "kl": evaluation.kl_every,
        "fluency": evaluation.fluency_every,
        "generated": evaluation.generated_every,
    }
    due = [name for name, n in every.items() if n and step % n == 0]
    return due + (["prompts"] if evaluation.prompts and is_measured else [])


def measure_due(context: StudyContext, edited: Model, step: int, due: list[str]) -> dict[str, Any]:
    """Measure what is due of the model that has the step's edit; return fields of its record."""
    fields: dict[str, Any] = {}
    if "kl" in due:
        fields["kl_nats"] = kl_divergence(edited, context.unedited, context.texts)
    if "fluency" in due:
        fields |= _measure_fluency(context, edited, context.batches[step - 1])
    if "generated" in due:
        batch, evaluation = context.batches[step - 1], context.evaluation
        said = generate_answers(edited, batch, evaluation.generated_context, evaluation.judge)
        fields["generated_metrics"] = generated_metrics(said)
        fields["generated_answers"] = said
    if "prompts" in due:
        prompts = context.evaluation.prompts
        fields["prompt_continuations"] = continuations(edited, prompts, PROMPT_TOKENS)
    return fields


def _measure_fluency(context: StudyContext, edited: Model, batch: list[Request]) -> dict[str, Any]:
    """Fluency of what is generated for the requests; consistency where there are references."""
    prompts = [request.generation_prompts or (request.prompt_text,) for request in batch]
    texts = generate_texts(edited, [prompt for each in prompts for prompt in each])
    fields: dict[str, Any] = {"ngram_entropy_bits": fluency(texts)}
    references = context.evaluation.reference_texts
    if references is None:
        return fields
    remaining = iter(texts)
    scores = [
        consistency(references, request, [next(remaining) for _ in each])
        for request, each in zip(batch, prompts, strict=True)
    ]
    known = [score for score in scores if score is not None]
    return fields | {"reference_score": float(np.mean(known)) if known else None}


def log_without_bos(context: StudyContext) -> None:
    """Log the unedited perplexity as the paper measures it, beside a study that does otherwise."""
    texts = read_texts(context.run["config"]["texts"])
    logging.getLogger("jaxedit").info(
        "texts are scored behind a begin-of-text token (eval.bos); without it, as in the paper, "
        "the unedited perplexity is %s",
        f"{perplexity(context.unedited, texts).mean:,.1f}",
    )


def perplexity_record(edited: Perplexity, base: Perplexity) -> PerplexityRecord:
    """Return what the journal says of a perplexity, beside the unedited model's."""
    difference, stderr = edited.paired_difference(base)
    return PerplexityRecord(
        **_perplexity_fields(edited),
        ratio=edited.mean / base.mean,
        delta_nll_nats=difference,
        delta_nll_stderr_nats=stderr,
    )


def _perplexity_fields(score: Perplexity) -> BaselinePerplexity:
    """Return what the journal says of a perplexity by itself."""
    return BaselinePerplexity(
        mean=score.mean,
        pooled=score.pooled,
        n_non_finite=score.n_non_finite,
        log_mean_nats=score.log_mean_nats,
        log_pooled_nats=score.log_pooled_nats,
        median=score.median,
        log_median_nats=score.log_median_nats,
    )


def baseline_record(context: StudyContext, base: Perplexity) -> StepRecord:
    """Return the journal's first record: the unedited model's perplexity and continuations."""
    prompts = context.evaluation.prompts
    said = continuations(context.unedited, prompts, PROMPT_TOKENS) if prompts else None
    return StepRecord(
        kind="baseline",
        step=0,
        perplexity=cast(PerplexityRecord, _perplexity_fields(base)),
        prompt_continuations=said,
    )
