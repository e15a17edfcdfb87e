"""KnowEdit as EasyEdit publishes it (arXiv 2401.01286).

Its parts are Wiki-counterfact, Wiki-recent and its own ZsRE. Beside the fact lie probes in groups:
`portability` holds questions that follow from it (by logic, by reasoning, of the subject's other
names), `locality` what should stay. An answer is a list of names, or a list of such lists; the
first name counts. A probe without an answer is left out."""

from collections.abc import Iterator
from typing import Any

from jaxedit.datasets._fields import is_missing, not_blank
from jaxedit.datasets._subjects import template_of
from jaxedit.edits.request import PromptAnswer, Request
from jaxedit.files import shorten_json

KEYS = frozenset({"subject", "prompt", "target_new", "portability", "locality"})
FIELDS = {
    "subject": str,
    "prompt": str,
    "target_new": str,
    "portability": dict | None,
    "locality": dict | None,
    "ground_truth?": str | list,
    "rephrase?": str | list,
    "rephrase_prompt?": str | list,
}


def request(record: dict[str, Any]) -> Request | None:
    """Return the request that a record describes.

    None where an answer is empty or the subject does not occur in the prompt. An empty list of true
    answers says, as null does, that none is known.

    Raises:
      ValueError: on an empty subject, or a probe that is no object with a prompt and answers.
    """
    subject = record["subject"]
    target_true = next(_texts(record.get("ground_truth"), "ground_truth"), None)
    answers = [record["target_new"], *([] if target_true is None else [target_true])]
    if not all(answer.strip() for answer in answers):
        return None
    prompt = template_of(record["prompt"], subject)
    if prompt is None:
        return None
    name = "rephrase" if record.get("rephrase") else "rephrase_prompt"
    return Request(
        prompt=prompt,
        subject=subject,
        target_new=record["target_new"],
        target_true=target_true,
        paraphrases=not_blank(_texts(record.get(name), name)),
        neighbours=_probes("locality", record["locality"]),
        portability=_probes("portability", record["portability"]),
    )


def _probes(field: str, groups: dict[str, Any] | None) -> tuple[PromptAnswer, ...]:
    """Return the probes of all groups that have a prompt and an answer."""
    found = []
    for name, probes in (groups or {}).items():
        if is_missing(probes) or probes in ({}, ""):
            continue
        if not isinstance(probes, list):
            raise ValueError(f"{field}.{name} must be a list, got {shorten_json(probes)}")
        for i, probe in enumerate(probes):
            what = f"{field}.{name}[{i}]"
            if not isinstance(probe, dict) or not {"prompt", "ground_truth"} <= set(probe):
                raise ValueError(f"{what} must be an object with a prompt and a ground_truth")
            prompt = _first(probe["prompt"], f"{what}.prompt")
            answer = _first(probe["ground_truth"], f"{what}.ground_truth")
            if prompt.strip() and answer.strip():
                found.append(PromptAnswer(prompt, answer))
    return tuple(found)


def _first(value: Any, what: str) -> str:
    """Return the first text of nested lists, without those that are missing; empty: none."""
    return next(_texts(value, what), "")


def _texts(value: Any, what: str) -> Iterator[str]:
    """Yield the texts of nested lists, without those that are missing.

    Raises:
      ValueError: on anything else in them but a whole number, which is a text as well.
    """
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += reversed(item)
        elif isinstance(item, str | int) and not isinstance(item, bool):
            yield str(item)
        elif not is_missing(item):
            raise ValueError(f"{what} must be a text or a list of texts, got {shorten_json(value)}")
