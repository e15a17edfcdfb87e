"""UltraEditBench: facts of Wikidata as questions (arXiv 2505.14679).

`prompt` is the question and `ans` the answer to write, `rephrase_prompt` asks the same in other
words; `loc` is a question whose answer should stay."""

from typing import Any

from jaxedit.datasets._fields import not_blank
from jaxedit.datasets._subjects import template_of
from jaxedit.datasets.wikibigedit import probe_of
from jaxedit.edits.request import Request

KEYS = frozenset({"subject", "prompt", "ans"})
FIELDS = {
    "subject": str,
    "prompt": str,
    "ans": str,
    "rephrase_prompt?": str,
    "loc?": str,
    "loc_ans?": str,
}


def request(record: dict[str, Any]) -> Request | None:
    """Return the request that a record describes.

    None where the answer is empty or the subject does not occur in the question.

    Raises:
      ValueError: on an empty subject.
    """
    if not record["ans"].strip():
        return None
    prompt = template_of(record["prompt"], record["subject"])
    if prompt is None:
        return None
    return Request(
        prompt=prompt,
        subject=record["subject"],
        target_new=record["ans"],
        paraphrases=not_blank([record.get("rephrase_prompt") or ""]),
        neighbours=probe_of(record, "loc"),
    )
