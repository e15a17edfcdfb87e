"""KnowEdit as EasyEdit publishes it (arXiv 2401.01286).

Its parts are Wiki-counterfact, Wiki-recent and its own ZsRE. Beside the fact lie probes in groups:
`portability` holds questions that follow from it (by logic, by reasoning, of the subject's other
names), `locality` what should stay. An answer is a list of names, or a list of such lists; the
first name counts."""

from typing import Any

from jaxedit.datasets._subjects import template_of
from jaxedit.edits.request import PromptAnswer, Request

KEYS = frozenset({"subject", "prompt", "target_new", "portability", "locality"})
FIELDS = {
    "subject": str,
    "prompt": str,
    "target_new": str,
    "portability": dict,
    "locality": dict,
    "ground_truth?": str | list,
    "rephrase?": str | list,
}


def request(record: dict[str, Any]) -> Request | None:
    """Return the request that a record describes.

    None where an answer is empty or the subject does not occur in the prompt.

    Raises:
      ValueError: on an empty subject, or a probe that is no object with a prompt and answers.
    """
    subject, true = record["subject"], record.get("ground_truth")
    target_true = None if true is None else _first(true)
    answers = [record["target_new"], *([] if target_true is None else [target_true])]
    if not all(answer.strip() for answer in answers):
        return None
    prompt = template_of(record["prompt"], subject)
    if prompt is None:
        return None
    rephrase = record.get("rephrase") or ()
    return Request(
        prompt=prompt,
        subject=subject,
        target_new=record["target_new"],
        target_true=target_true,
        paraphrases=(rephrase,) if isinstance(rephrase, str) else tuple(rephrase),
        neighbours=_probes("locality", record["locality"]),
        portability=_probes("portability", record["portability"]),
    )


def _probes(field: str, groups: dict[str, Any]) -> tuple[PromptAnswer, ...]:
    """Return the probes of all groups that have an answer."""
    found = []
    for name, probes in groups.items():
        for i, probe in enumerate(probes or ()):
            if not isinstance(probe, dict) or not {"prompt", "ground_truth"} <= set(probe):
                raise ValueError(
                    f"{field}.{name}[{i}] must be an object with a prompt and a ground_truth"
                )
            answer = _first(probe["ground_truth"])
            if answer.strip():
                found.append(PromptAnswer(_first(probe["prompt"]), answer))
    return tuple(found)


def _first(value: Any) -> str:
    """Return the first text of nested lists; empty where there is none."""
    while isinstance(value, list):
        value = value[0] if value else ""
    return str(value)
