"""WikiBigEdit: changes of Wikidata as questions (arXiv 2503.05683).

`update` is the question and `ans` its new answer; `rephrase` and `personas` ask the same in other
words. `mhop` is a question that follows from the fact, `loc` one about another subject, whose
answer should stay. Beside these a record may have more ways of asking, whose keys begin with
`personas_`."""

from typing import Any

from jaxedit.datasets._fields import not_blank
from jaxedit.datasets._subjects import template_of
from jaxedit.edits.request import PromptAnswer, Request

KEYS = frozenset({"subject", "update", "ans"})
FIELDS = {
    "subject": str,
    "update": str,
    "ans": str,
    "relation?": str,
    "rephrase?": str,
    "personas?": str,
    "loc?": str,
    "loc_ans?": str,
    "mhop?": str,
    "mhop_ans?": str,
}


def request(record: dict[str, Any]) -> Request | None:
    """Return the request that a record describes.

    None where the answer is empty or the subject does not occur in the question.

    Raises:
      ValueError: on an empty subject.
    """
    if not record["ans"].strip():
        return None
    prompt = template_of(record["update"], record["subject"])
    if prompt is None:
        return None
    asked = [record.get("rephrase")] + [
        value for key, value in record.items() if key.startswith("personas")
    ]
    return Request(
        prompt=prompt,
        subject=record["subject"],
        target_new=record["ans"],
        paraphrases=not_blank(text for text in asked if isinstance(text, str)),
        neighbours=probe_of(record, "loc"),
        portability=probe_of(record, "mhop"),
        relation=record.get("relation"),
    )


def probe_of(record: dict[str, Any], name: str) -> tuple[PromptAnswer, ...]:
    """Return the probe under a name, where the record has it with its answer."""
    prompt, answer = record.get(name, ""), record.get(f"{name}_ans", "")
    return (PromptAnswer(prompt, answer),) if prompt.strip() and answer.strip() else ()
