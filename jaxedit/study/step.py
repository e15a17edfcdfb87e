"""One step of a study: the edit and what is measured of it; or, where edits do not wait for each
other, a lot of them.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxedit.edits.edit import Edit, all_low_rank, apply, with_edit_tokenizer, with_per_row_edits
from jaxedit.edits.request import Request
from jaxedit.metrics.consistency import consistency
from jaxedit.metrics.divergence import kl_divergence
from jaxedit.metrics.facts import average_facts, evaluate_facts
from jaxedit.metrics.fluency import fluency, generate_texts
from jaxedit.metrics.perplexity import Perplexity, perplexity, perplexity_each
from jaxedit.metrics.perturbation import relative_perturbation
from jaxedit.models.generate import generate
from jaxedit.models.model import Model
from jaxedit.study.context import StudyContext

SAYS_TOKENS = 8  # how much of a continuation is kept, for people to read
PROMPT_TOKENS = 20  # ... and of those of the study's own prompts


class Measured(NamedTuple):
    """An edit, whether its facts hold before and after, what the model says, and the perplexity
    where it was due.
    """

    edit: Edit
    info: dict[str, float]
    before: dict[str, Any]
    fact: dict[str, Any]
    says_before: str
    says: str
    after: Perplexity | None
    time_s: dict[str, float]
    push: float  # how hard the edit pushes the texts: `jaxedit.metrics.perturbation`
    lot: int | None = None  # the first step of those that were made and measured together


class Stopwatch:
    """Seconds of each phase of a step."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self.laps[phase] = now - self.last
        self.last = now

    def read(self, n_edits: int = 1) -> dict[str, float]:
        """Seconds a phase and edit so far."""
        return {phase: round(time_s / n_edits, 4) for phase, time_s in self.laps.items()}


def edit_one(
    context: StudyContext, model: Model, state: Any, number: int, watch: Stopwatch
) -> tuple[Measured, Model, Any]:
    """Makes the edit of a step on a model and measures it; also returns the edited model and the
    editor's new state.

    Raises:
      ValueError: where a request cannot be edited or measured.
    """
    batch, hard = context.batches[number - 1], number in context.screening.hard
    editor = context.screening.instead if hard and context.screening.instead else context.editor
    edit, state, info = editor.edit(model, batch, state)
    watch.lap("edit")
    push = relative_perturbation(context.probes, edit)
    watch.lap("perturbation")
    edited = apply(model, edit)
    watch.lap("apply")
    before, fact = (
        average_facts(evaluate_facts(each, batch, prefix=context.prefix))
        for each in (context.unedited, edited)
    )
    watch.lap("facts")
    (said,), (says,) = (
        continuations(each, [batch[0].prompt_text], SAYS_TOKENS)
        for each in (context.unedited, edited)
    )
    watch.lap("generate")
    after = perplexity(edited, context.texts) if _due(context, number, push) else None
    watch.lap("perplexity")
    return Measured(edit, info, before, fact, said, says, after, watch.read(), push), edited, state


def edit_batch(context: StudyContext, model: Model, state: Any, first: int) -> dict[int, Measured]:
    """The steps from `first` on that go together, each edit by itself on the same model; nothing is
    written out for any.

    Nothing is returned where that cannot be done: a request cannot be edited, the edits are not
    low-rank, or some are made in another way. They are then made one by one, and it shows whose
    fault it is."""
    numbers = list(range(first, min(first + context.edits_at_once, len(context.batches) + 1)))
    requests = [request for number in numbers for request in context.batches[number - 1]]
    if not context.screening.hard.isdisjoint(numbers):
        return {}
    watch = Stopwatch()
    try:
        assert context.editor.edit_each is not None
        edits, infos = zip(*context.editor.edit_each(model, requests, state), strict=True)
        watch.lap("edit")
        if not all_low_rank(edits):
            return {}
        pushes = [relative_perturbation(context.probes, edit) for edit in edits]
        watch.lap("perturbation")
        asked = with_edit_tokenizer(model, edits)
        before = evaluate_facts(context.unedited, requests, prefix=context.prefix)
        found = evaluate_facts(asked, requests, list(edits), context.prefix)
        watch.lap("facts")
        questions = [request.prompt_text for request in requests]
        lanes_B = np.minimum(
            np.arange(len(edits) + -len(edits) % model.mesh.shape["data"]), len(edits) - 1
        )
        said = continuations(context.unedited, questions, SAYS_TOKENS)
        says = continuations(with_per_row_edits(asked, edits, lanes_B), questions, SAYS_TOKENS)
        watch.lap("generate")
    except ValueError:
        return {}
    due = [i for i, number in enumerate(numbers) if _due(context, number, pushes[i])]
    scored = (
        dict(zip(due, perplexity_each(model, context.texts, [edits[i] for i in due]), strict=True))
        if due
        else {}
    )
    watch.lap("perplexity")
    time_s = watch.read(len(edits))
    return {
        number: Measured(
            edit=edits[i],
            info=infos[i],
            before=before[i],
            fact=found[i],
            says_before=said[i],
            says=says[i],
            after=scored.get(i),
            time_s=time_s,
            push=pushes[i],
            lot=first,
        )
        for i, number in enumerate(numbers)
    }


def continuations(model: Model, prompts: Sequence[str], n_tokens: int) -> list[str]:
    """What a model says to prompts, without them."""
    texts = generate(model, list(prompts), max_new_tokens=n_tokens)
    return [text.removeprefix(prompt) for text, prompt in zip(texts, prompts, strict=True)]


def _due(context: StudyContext, number: int, push: float) -> bool:
    """Whether the perplexity is measured: every so often, and where the edit pushes the texts hard."""
    return _regular(context, number) or context.guard.wants_a_look(push)


def _regular(context: StudyContext, number: int) -> bool:
    return number % context.perplexity_every == 0 or number == len(context.batches)


def due_now_and_then(context: StudyContext, number: int) -> list[str]:
    """What is measured after this step besides facts and perplexity: "kl", "fluency", "prompts"."""
    every = {"kl": context.divergence_every, "fluency": context.fluency_every}
    due = [name for name, n in every.items() if n and number % n == 0]
    return due + (["prompts"] if context.prompts and _regular(context, number) else [])


def measure_now_and_then(
    context: StudyContext, edited: Model, number: int, due: list[str]
) -> dict[str, Any]:
    """Measures what is due of the model that has the step's edit."""
    found: dict[str, Any] = {}
    if "kl" in due:
        found["divergence_nats"] = kl_divergence(edited, context.unedited, context.texts)
    if "fluency" in due:
        found |= _spoken(context, edited, context.batches[number - 1])
    if "prompts" in due:
        found["continuations"] = continuations(edited, context.prompts, PROMPT_TOKENS)
    return found


def _spoken(context: StudyContext, model: Model, batch: list[Request]) -> dict[str, Any]:
    """Fluency of what a model generates for the requests, and consistency where there are reference
    texts.
    """
    prompts = [request.generation_prompts or (request.prompt_text,) for request in batch]
    texts = generate_texts(model, [prompt for each in prompts for prompt in each])
    found: dict[str, Any] = {"fluency_bits": fluency(texts)}
    if context.references is None:
        return found
    left = iter(texts)
    scores = [
        consistency(context.references, request, [next(left) for _ in each])
        for request, each in zip(batch, prompts, strict=True)
    ]
    known = [score for score in scores if score is not None]
    return found | {"consistency": float(np.mean(known)) if known else None}


def perplexity_record(after: Perplexity, base: Perplexity) -> dict[str, float]:
    """What the journal says of a perplexity, beside the unedited model's."""
    difference, stderr = after.paired_difference(base)
    return {
        "mean": after.mean,
        "pooled": after.pooled,
        "ratio": after.mean / base.mean,
        "delta_nll_nats": difference,
        "delta_nll_stderr_nats": stderr,
        "n_broken": after.n_broken,
    }
