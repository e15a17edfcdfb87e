"""This library's own form: a record has the fields of a `Request` under their names.

    {"prompt": "{} is located in the city of", "subject": "The Eiffel Tower", "target_new": "Rome"}

and, where known, target_true, paraphrases, neighbours ([{"prompt": ..., "answer": ...}]),
portability (the same), generation_prompts, case_id, relation, target_id and leading_space ("none"
for languages without a space between words). The keys "kind" (of fact or subject) and "note" are
for readers and ignored; any other key raises, because it is likely a typing error. The subject may
be written out in the prompt, once."""

from typing import Any

from jaxedit.datasets._fields import NUMBER_OR_TEXT, not_blank
from jaxedit.edits.request import PromptAnswer, Request
from jaxedit.edits.subjects import as_template

KEYS = frozenset({"prompt", "subject", "target_new"})
PROBE = {"prompt": str, "answer": str}
FIELDS = {
    "prompt": str,
    "subject": str,
    "target_new": str,
    "target_true?": str,
    "paraphrases?": [str],
    "neighbours?": [PROBE],
    "portability?": [PROBE],
    "generation_prompts?": [str],
    "case_id?": NUMBER_OR_TEXT,
    "relation?": str,
    "target_id?": str,
    "leading_space?": str,
    "kind?": str,
    "note?": str,
}


def request(record: dict[str, Any]) -> Request | None:
    """Return the request that a record describes; None where an answer is empty.

    Raises:
      ValueError: on an unknown key, or a prompt with neither one `{}` nor the subject once.
    """
    # Unknown keys are likely typing errors, in the record as in its probes.
    _check_keys("the record", record, [key.removesuffix("?") for key in FIELDS])
    neighbours, portability = (record.get(name) or [] for name in ("neighbours", "portability"))
    for name, probes in (("neighbours", neighbours), ("portability", portability)):
        for i, probe in enumerate(probes):
            _check_keys(f"{name}[{i}]", probe, list(PROBE))
    # An edit or a probe without an answer is of no use.
    given = [record["target_new"], *(probe["answer"] for probe in (*neighbours, *portability))]
    if record.get("target_true") is not None:
        given.append(record["target_true"])
    if not all(answer.strip() for answer in given):
        return None
    return Request(
        prompt=as_template(record["prompt"], record["subject"]),
        subject=record["subject"],
        target_new=record["target_new"],
        target_true=record.get("target_true"),
        paraphrases=not_blank(record.get("paraphrases", ())),
        neighbours=tuple(PromptAnswer(**neighbour) for neighbour in neighbours),
        generation_prompts=not_blank(record.get("generation_prompts", ())),
        case_id=record.get("case_id"),
        relation=record.get("relation"),
        target_id=record.get("target_id"),
        portability=tuple(PromptAnswer(**probe) for probe in portability),
        leading_space=record.get("leading_space"),
    )


def _check_keys(what: str, record: dict[str, Any], known: list[str]) -> None:
    """Raise a ValueError on a key that is not known."""
    unknown = sorted(set(record) - set(known))
    if unknown:
        raise ValueError(f"{what} has the unknown key {unknown[0]!r}; known are {', '.join(known)}")
