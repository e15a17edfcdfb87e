"""A language model as a judge of answers, at any address that speaks OpenAI's protocol."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxedit.chat_server import ask_chat
from jaxedit.distributed import broadcast_flag, is_first_process

MAX_TOKENS = 16  # of a verdict
QUESTION = """You grade answers. You get a question, the right answer, and what was said.

Question: {question}
Right answer: {answer}
Said: {said}

Does what was said give the right answer? Other words, more detail and another order do not matter.
Another answer, several answers or none at all do. Say CORRECT or INCORRECT, and nothing else."""


class Judge:
    """Asks whether answers are right, each question with its answers once.

    Attributes:
      base_url: of the server, e.g. "http://localhost:8000/v1".
      model: its name there.
    """

    def __init__(self, base_url: str, model: str):
        self.base_url, self.model = base_url, model
        self._verdicts: dict[tuple[str, str, str], bool] = {}

    def remember(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Take over verdicts of a journal, so that they are not asked for again."""
        for each in answers:
            if each.get("judged") is not None:
                self._verdicts[each["prompt"], each["answer"], each["said"]] = each["judged"]

    def is_right(self, question: str, answer: str, said: str) -> bool:
        """Return whether what was said is right; of several processes the first one asks.

        Raises:
          ValueError: where the server cannot be asked, or gives no verdict.
        """
        asked = question, answer, said
        if asked not in self._verdicts:
            verdict, failure = False, None
            if is_first_process():
                try:
                    verdict = self._ask(*asked)
                except ValueError as error:
                    failure = error
            if not broadcast_flag(failure is None):  # else the others would wait for ever
                raise failure or ValueError("the first process of this run could not ask the judge")
            self._verdicts[asked] = broadcast_flag(verdict)
        return self._verdicts[asked]

    def _ask(self, question: str, answer: str, said: str) -> bool:
        """Ask the server."""
        content = QUESTION.format(question=question, answer=answer, said=said)
        options = dict(temperature=0, max_tokens=MAX_TOKENS)
        kept = "The edits before are kept"
        text = ask_chat(self.base_url, self.model, content, "judge", kept, **options).text
        words = re.findall("[A-Z]+", text.upper())
        if not words or words[0] not in ("CORRECT", "INCORRECT"):
            raise ValueError(
                f"the judge {self.model} at {self.base_url} said {text[:80]!r}, where CORRECT or "
                "INCORRECT was asked for: take another model"
            )
        return words[0] == "CORRECT"
