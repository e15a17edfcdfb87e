"""Facts that a model knows, as the ROME repository publishes them (known_1000.json).

No new answer is given. Each fact gets one as CounterFact's were chosen, another answer of the same
relation: that of the next record in the file (and from its beginning) whose answer differs. A fact
whose relation has no other answer cannot be edited."""

from typing import Any

from jaxedit.datasets._fields import NUMBER_OR_TEXT
from jaxedit.datasets._subjects import template_of
from jaxedit.edits.request import Request

KEYS = frozenset({"known_id", "subject", "attribute", "prompt"})
FIELDS = {
    "known_id": NUMBER_OR_TEXT,
    "subject": str,
    "attribute": str,
    "prompt": str,
    "relation_id?": str,
}


def requests(records: list[dict[str, Any]]) -> list[Request | None]:
    """Return the request of each record.

    None where an answer is empty or lacking, or the subject does not occur in the prompt.

    Raises:
      ValueError: on an empty subject.
    """
    by_relation: dict[str | None, list[int]] = {}
    for i, record in enumerate(records):
        if record["attribute"].strip():
            by_relation.setdefault(record.get("relation_id"), []).append(i)
    new_answers: dict[int, str | None] = {}
    for same in by_relation.values():
        answers = _next_other([records[i]["attribute"].strip() for i in same])
        new_answers |= zip(same, answers, strict=True)
    return [_request(record, new_answers.get(i)) for i, record in enumerate(records)]


def _next_other(answers: list[str]) -> list[str | None]:
    """Return for each answer the next one that differs, the first following the last."""
    # Backwards, and round twice: where the next one is the same, so is what differs from both.
    found: list[str | None] = [None] * len(answers)
    other: str | None = None
    for i in [*reversed(range(len(answers)))] * 2:
        after = answers[(i + 1) % len(answers)]
        other = after if after != answers[i] else other
        found[i] = other
    return found


def _request(record: dict[str, Any], new: str | None) -> Request | None:
    prompt = template_of(record["prompt"], record["subject"])
    if prompt is None or new is None:
        return None
    return Request(
        prompt=prompt,
        subject=record["subject"],
        target_new=new,
        target_true=record["attribute"],
        case_id=record["known_id"],
        relation=record.get("relation_id"),
    )
