"""UltraEditBench: facts of Wikidata as questions (arXiv 2505.14679).

`prompt` is the question and `ans` the answer to write, `rephrase_prompt` asks the same in other
words; `loc` is a question whose answer should stay."""

from typing import Any

from jaxedit.datasets._questions import request_of_question
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
    return request_of_question(record, record["prompt"], [record.get("rephrase_prompt")])
