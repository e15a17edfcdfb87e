"""CounterFact as EasyEdit publishes it (counterfact-edit.json).

A record is flat: the prompt is written out, with one paraphrase and one neighbour."""

from typing import Any

from jaxedit.datasets._fields import NUMBER_OR_TEXT, not_blank
from jaxedit.datasets._subjects import template_of
from jaxedit.edits.request import PromptAnswer, Request

KEYS = frozenset({"prompt", "subject", "target_new", "ground_truth"})
FIELDS = {
    "prompt": str,
    "subject": str,
    "target_new": str,
    "ground_truth": str | None,
    "rephrase_prompt?": str,
    "locality_prompt?": str,
    "locality_ground_truth?": str,
    "case_id?": NUMBER_OR_TEXT,
}


def request(record: dict[str, Any]) -> Request | None:
    """Return the request that a record describes.

    None where an answer is empty or the subject does not occur in the prompt.

    Raises:
      ValueError: on an empty subject, or a neighbour without its answer.
    """
    true = record.get("ground_truth")
    answers = [record["target_new"], *([] if true is None else [true])]
    neighbour = record.get("locality_prompt", "").strip()
    if neighbour:
        if record.get("locality_ground_truth") is None:
            raise ValueError(
                "there is a locality_prompt but no locality_ground_truth, which is its answer"
            )
        answers.append(record["locality_ground_truth"])
    if not all(answer.strip() for answer in answers):
        return None
    prompt = template_of(record["prompt"], record["subject"])
    if prompt is None:
        return None
    return Request(
        prompt=prompt,
        subject=record["subject"],
        target_new=record["target_new"],
        target_true=true,
        paraphrases=not_blank([record.get("rephrase_prompt", "")]),
        neighbours=(PromptAnswer(neighbour, record["locality_ground_truth"]),) if neighbour else (),
        case_id=record.get("case_id"),
    )
