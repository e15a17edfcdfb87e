"""MQuAKE (arXiv 2305.14795, MQuAKE-CF and -T): facts written together, questions that need them.

Each rewrite of a record becomes a request of its own; the last one also has the record's multi-hop
questions with the answer that all of them together give, as its portability: it is asked when the
others are written."""

import dataclasses
from typing import Any

from jaxedit.datasets._fields import NUMBER_OR_TEXT, not_blank
from jaxedit.edits.request import PromptAnswer, Request

KEYS = frozenset({"case_id", "requested_rewrite", "questions", "new_answer"})
FIELDS = {
    "case_id": NUMBER_OR_TEXT,
    "requested_rewrite": [
        {
            "prompt": str,
            "subject": str,
            "question?": str,
            "relation_id?": str,
            "target_new": {"str": str},
            "target_true": {"str": str},
        }
    ],
    "questions": [str],
    "new_answer": str,
}


def requests(records: list[dict[str, Any]]) -> list[Request | None]:
    """Return the requests of all records in order; None for a rewrite with an empty answer.

    Raises:
      ValueError: on a prompt without exactly one `{}`.
    """
    found: list[Request | None] = []
    for record in records:
        rewrites = [_request(record, rewrite) for rewrite in record["requested_rewrite"]]
        if rewrites and rewrites[-1] is not None and record["new_answer"].strip():
            answer, questions = record["new_answer"], not_blank(record["questions"])
            portability = tuple(PromptAnswer(question, answer) for question in questions)
            rewrites[-1] = dataclasses.replace(rewrites[-1], portability=portability)
        found += rewrites
    return found


def _request(record: dict[str, Any], rewrite: dict[str, Any]) -> Request | None:
    new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
    if not (new.strip() and true.strip()):
        return None
    return Request(
        prompt=rewrite["prompt"],
        subject=rewrite["subject"],
        target_new=new,
        target_true=true,
        paraphrases=not_blank([rewrite.get("question", "")]),
        case_id=record["case_id"],
        relation=rewrite.get("relation_id"),
    )
