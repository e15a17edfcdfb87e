"""CounterFact as the ROME repository publishes it (arXiv 2202.05262, counterfact.json).

The prompt has `{}` for the subject; the neighbours ask about other subjects for which the edited
fact's true answer holds."""

from typing import Any

from jaxedit.datasets._fields import NUMBER_OR_TEXT, not_blank
from jaxedit.edits.request import PromptAnswer, Request

KEYS = frozenset({"case_id", "requested_rewrite"})
FIELDS = {
    "case_id": NUMBER_OR_TEXT,
    "requested_rewrite": {
        "prompt": str,
        "subject": str,
        "relation_id?": str,
        "target_new": {"str": str, "id?": str},
        "target_true": {"str": str},
    },
    "paraphrase_prompts?": [str],
    "neighborhood_prompts?": [str],
    "generation_prompts?": [str],
}


def request(record: dict[str, Any]) -> Request | None:
    """Return the request that a record describes; None where an answer is empty.

    Raises:
      ValueError: on a prompt without exactly one `{}`.
    """
    rewrite = record["requested_rewrite"]
    target_new, target_true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
    if not (target_new.strip() and target_true.strip()):
        return None
    neighbours = not_blank(record.get("neighborhood_prompts", ()))
    return Request(
        prompt=rewrite["prompt"],
        subject=rewrite["subject"],
        target_new=target_new,
        target_true=target_true,
        paraphrases=not_blank(record.get("paraphrase_prompts", ())),
        neighbours=tuple(PromptAnswer(prompt, target_true) for prompt in neighbours),
        generation_prompts=not_blank(record.get("generation_prompts", ())),
        case_id=record["case_id"],
        relation=rewrite.get("relation_id"),
        target_id=rewrite["target_new"].get("id"),
    )
