"""Facts that a model knows, as the ROME repository publishes them (known_1000.json).

No new answer is given. Each fact gets one as CounterFact's were chosen, another answer of the same
relation: that of the next record in the file (and from its beginning) whose answer differs. A fact
whose relation has no other answer cannot be edited."""

from typing import Any

from jaxedit.datasets._subjects import template_of
from jaxedit.edits.request import Request

KEYS = frozenset({"known_id", "subject", "attribute", "prompt"})
FIELDS = {
    "known_id": int | str,
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
        by_relation.setdefault(record.get("relation_id"), []).append(i)
    found = []
    for i, record in enumerate(records):
        # The records of the same relation after this one, and from the beginning up to it.
        same = by_relation[record.get("relation_id")]
        place = same.index(i)
        others = [records[j]["attribute"] for j in same[place + 1 :] + same[:place]]
        known = record["attribute"].strip()
        differing = (other for other in others if other.strip() and other.strip() != known)
        new = next(differing, None)
        found.append(_request(record, new) if known and new else None)
    return found


def _request(record: dict[str, Any], new: str) -> Request | None:
    prompt = template_of(record["prompt"], record["subject"])
    if prompt is None:
        return None
    return Request(
        prompt=prompt,
        subject=record["subject"],
        target_new=new,
        target_true=record["attribute"],
        case_id=record["known_id"],
        relation=record.get("relation_id"),
    )
