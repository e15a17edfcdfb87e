"""A request: the fact to write, and the prompts that tell whether the edit took."""

import dataclasses
from typing import NamedTuple


class PromptAnswer(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Request:
    """One fact to write.

    Attributes:
      prompt: with one `{}` where the subject goes, e.g. "{} is located in the city of".
      subject: e.g. "The Eiffel Tower".
      target_new: the answer to write, without a leading space, e.g. "Rome".
      target_true: the answer the edit replaces, where known.
      paraphrases: full prompts that ask for the same fact.
      neighbours: prompts about other subjects, with their own answers.
      generation_prompts: prompts to continue freely.
      case_id: the record's number in its data set.
      relation: the relation's name there.
      portability: questions that follow from the new fact, with their answers.
      target_id: the new answer's number in Wikidata.

    Raises:
      ValueError: on a prompt without exactly one `{}`, or an empty subject or target.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[PromptAnswer, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    case_id: int | str | None = None
    relation: str | None = None
    portability: tuple[PromptAnswer, ...] = ()
    target_id: str | None = None

    def __post_init__(self):
        n_places = self.prompt.count("{}")
        if n_places != 1:
            raise ValueError(
                f"the prompt {self.prompt!r} has {n_places} places {{}} for the subject, "
                'expected exactly one, e.g. "{} is located in the city of"'
            )
        for name in ("subject", "target_new"):
            if not getattr(self, name).strip():
                raise ValueError(f"the request {self.prompt!r} has an empty {name}")

    @property
    def prompt_text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    @property
    def summary(self) -> str:
        """The request in one line, for tables and logs."""
        return f"{self.prompt_text} → {self.target_new}"


def to_template(full_prompt: str, subject: str) -> str:
    """Replace the first occurrence of the subject in a full prompt by `{}`.

    Raises:
      ValueError: where the subject does not occur.
    """
    if not subject or subject not in full_prompt:
        raise ValueError(f"the subject {subject!r} does not occur in the prompt {full_prompt!r}")
    return full_prompt.replace(subject, "{}", 1)
