"""Zero-shot relation extraction (zsRE) as MEND publishes it (arXiv 2110.11309).

A record holds a question, and a Natural Question beside it: `src` is the question, `alt` the answer
to write, `answers[0]` the right one; `loc` is the neighbour, "nq question: " and a question in
lower case without its mark."""

from typing import Any

from jaxedit.datasets._fields import not_blank
from jaxedit.datasets._subjects import template_of
from jaxedit.edits.request import PromptAnswer, Request

KEYS = frozenset({"subject", "src", "alt", "answers", "rephrase", "loc", "loc_ans"})
FIELDS = {
    "subject": str,
    "src": str,
    "alt": str,
    "answers": [str],
    "rephrase": str,
    "loc": str,
    "loc_ans": str,
}
LOC_PREFIX = "nq question: "


def request(record: dict[str, Any]) -> Request | None:
    """Return the request that a record describes.

    None where an answer is empty or the subject does not occur in the question.

    Raises:
      ValueError: on an empty subject, or a `loc` that does not begin with "nq question: ".
    """
    target_true = record["answers"][0] if record["answers"] else ""
    if not record["loc"].startswith(LOC_PREFIX):
        raise ValueError(f"loc must begin with {LOC_PREFIX!r}, got {record['loc'][:80]!r}")
    answers = (record["alt"], target_true, record["loc_ans"])
    if not all(answer.strip() for answer in answers):
        return None
    prompt = template_of(record["src"], record["subject"])
    if prompt is None:
        return None
    question = record["loc"].removeprefix(LOC_PREFIX).removesuffix("?") + "?"
    return Request(
        prompt=prompt,
        subject=record["subject"],
        target_new=record["alt"],
        target_true=target_true,
        paraphrases=not_blank([record["rephrase"]]),
        neighbours=(PromptAnswer(question, record["loc_ans"]),),
    )
