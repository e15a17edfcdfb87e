"""WikiBigEdit: changes of Wikidata as questions (arXiv 2503.05683).

`update` is the question and `ans` its new answer; `rephrase` and `personas` ask the same in other
words. `mhop` is a question that follows from the fact, `loc` one about another subject, whose
answer should stay. Beside these a record may have more ways of asking, whose keys begin with
`personas_`."""

from typing import Any

from jaxedit.datasets._questions import request_of_question
from jaxedit.edits.request import Request

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
    asked = [value for key, value in record.items() if key.startswith("personas")]
    return request_of_question(record, record["update"], [record.get("rephrase"), *asked])
