"""Facts judged by what a model says: answers that are generated, not scored.

Teacher-forced metrics (`jaxedit.metrics.facts`) ask how likely an answer's tokens are, given those
before them; a user reads what the model says by itself. Here it answers greedily, up to an
end-of-text token or the first line break, and what it says is compared with the answer (arXiv
2502.11177 shows how far the two may be apart):

*Exact*: both are the same without case, punctuation, articles and superfluous white space, as
SQuAD's evaluation has it. *Contains*: the words of the answer stand in it, one after the other.
*Judged*: a language model says that it is right (`jaxedit.metrics.judge`).

A question is asked in one of three contexts: `bare`, the prompt alone; `qa`, an instruction with
the prompt as the question; `chat`, the prompt as a user's message in the tokenizer's own template.
"""

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np

from jaxedit.edits.request import Request
from jaxedit.metrics.judge import Judge
from jaxedit.models.generate import continue_texts
from jaxedit.models.model import Model

CONTEXTS = ("bare", "qa", "chat")
QA = "Please answer the question:\n\nQ: {}\nA:"
MAX_NEW_TOKENS = 50
ARTICLES = re.compile(r"\b(a|an|the)\b")
WAYS = ("exact", "contains", "judged")
KINDS = ("efficacy", "paraphrase", "neighbourhood", "portability")


class GeneratedAnswer(TypedDict):
    """What a model says to a question.

    Attributes:
      request: which of the requests it belongs to.
      kind: one of `KINDS`: the prompt itself, a paraphrase, a neighbour, what follows from it.
      prompt: the question, without its context.
      answer: the one that is right; after an edit, the new one.
      said: what the model says, without white space at the edges.
      exact: whether both are the same.
      contains: whether the answer's words stand in it.
      judged: whether the judge calls it right; None: there is no judge.
    """

    request: int
    kind: str
    prompt: str
    answer: str
    said: str
    exact: bool
    contains: bool
    judged: bool | None


def generate_answers(
    model: Model, requests: Sequence[Request], context: str = "bare", judge: Judge | None = None
) -> list[GeneratedAnswer]:
    """Ask a model about facts, and compare what it says.

    Args:
      model: with or without edits.
      requests: whose prompts, paraphrases, neighbours and portability are asked.
      context: one of `CONTEXTS`.
      judge: asked as well, if given.

    Raises:
      ValueError: on an unknown context; on a chat with a model whose tokenizer has no template, or
        whose template changes a prompt; where the judge cannot be asked.
    """
    asked = [
        (i, *question) for i, request in enumerate(requests) for question in _questions_of(request)
    ]
    if not asked:
        return []
    prompts = [put_in_context(model, prompt, context) for _, _, prompt, _ in asked]
    texts = continue_texts(model, prompts, max_new_tokens=MAX_NEW_TOKENS)
    found = []
    for (i, kind, prompt, answer), text in zip(asked, texts, strict=True):
        said = first_line_of(text)
        found.append(
            GeneratedAnswer(
                request=i,
                kind=kind,
                prompt=prompt,
                answer=answer,
                said=said,
                exact=bool(said) and normalise(said) == normalise(answer),
                contains=contains(said, answer),
                judged=None if judge is None else judge.is_right(prompt, answer, said),
            )
        )
    return found


def generated_metrics(answers: Sequence[GeneratedAnswer]) -> dict[str, float]:
    """Return the share of answers that are right, by kind and by how they are compared.

    A request with several paraphrases counts as one, by their mean.

    Returns:
      "generated_efficacy_exact" and so on; what nothing was asked for is absent.
    """
    shares: dict[str, float] = {}
    for kind in KINDS:
        for way in WAYS:
            by_request: dict[int, list[bool]] = {}
            for each in answers:
                verdict = each[way]
                if each["kind"] == kind and verdict is not None:
                    by_request.setdefault(each["request"], []).append(verdict)
            if by_request:
                means = [np.mean(verdicts) for verdicts in by_request.values()]
                shares[f"generated_{kind}_{way}"] = float(np.mean(means))
    return shares


def put_in_context(model: Model, prompt: str, context: str) -> str:
    """Return what a model is asked: a prompt in one of the contexts.

    Raises:
      ValueError: as `generate_answers`.
    """
    if context == "bare":
        return prompt
    if context == "qa":
        return QA.format(prompt)
    if context != "chat":
        raise ValueError(f"unknown context {context!r}; expected one of {', '.join(CONTEXTS)}")
    rendered = model.tokenizer.render_chat([{"role": "user", "content": prompt}])
    if prompt not in rendered:
        raise ValueError(f"the chat template changes the prompt {prompt!r}, so it is not asked")
    return rendered


def first_line_of(text: str) -> str:
    """Return a text's first line that is not empty, without white space at its edges."""
    return text.strip().partition("\n")[0].strip()


def normalise(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and superfluous white space.

    Articles alone stay: "A" may be a vitamin. So does punctuation alone.
    """
    lower = unicodedata.normalize("NFC", text.lower())
    bare = "".join(letter for letter in lower if not _is_punctuation(letter))
    return " ".join(ARTICLES.sub(" ", bare).split() or bare.split() or lower.split())


def _is_punctuation(letter: str) -> bool:
    """Tell whether a character is punctuation, in ASCII as SQuAD's evaluation has it."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def contains(said: str, answer: str) -> bool:
    """Return whether the answer's words stand in what was said, one after the other."""
    wanted = normalise(answer)
    return bool(wanted) and f" {wanted} " in f" {normalise(said)} "


def _questions_of(request: Request) -> Iterator[tuple[str, str, str]]:
    """Yield kind, prompt and answer of each question about a request."""
    yield "efficacy", request.prompt_text, request.target_new
    for prompt in request.paraphrases:
        yield "paraphrase", prompt, request.target_new
    for kind, probes in (
        ("neighbourhood", request.neighbours),
        ("portability", request.portability),
    ):
        for probe in probes:
            yield kind, probe.prompt, probe.answer
