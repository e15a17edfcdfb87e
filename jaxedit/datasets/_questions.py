"""What forms have in common whose fact is a question (`subject`, `ans`), with more questions."""

from collections.abc import Iterable
from typing import Any

from jaxedit.datasets._fields import not_blank
from jaxedit.datasets._subjects import template_of
from jaxedit.edits.request import PromptAnswer, Request


def request_of_question(
    record: dict[str, Any], question: str, rephrased: Iterable[Any]
) -> Request | None:
    """Return the request that a record describes; `loc` and `mhop` are its probes.

    Args:
      record: with a `subject` and its answer, `ans`.
      question: that is answered.
      rephrased: in other words; what is no text is left out.

    Returns:
      None where the answer is empty or the subject does not occur in the question.

    Raises:
      ValueError: on an empty subject.
    """
    if not record["ans"].strip():
        return None
    prompt = template_of(question, record["subject"])
    if prompt is None:
        return None
    return Request(
        prompt=prompt,
        subject=record["subject"],
        target_new=record["ans"],
        paraphrases=not_blank(text for text in rephrased if isinstance(text, str)),
        neighbours=_probe(record, "loc"),
        portability=_probe(record, "mhop"),
        relation=record.get("relation"),
    )


def _probe(record: dict[str, Any], name: str) -> tuple[PromptAnswer, ...]:
    """Return the probe under a name, where the record has it with its answer."""
    prompt, answer = record.get(name, ""), record.get(f"{name}_ans", "")
    return (PromptAnswer(prompt, answer),) if prompt.strip() and answer.strip() else ()
