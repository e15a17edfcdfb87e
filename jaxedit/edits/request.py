"""A request: the fact to write, and the prompts that tell whether the edit took."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxedit.edits.spaces import check_leading_space, strip_end
from jaxedit.models.texts import check_surrogates


class PromptAnswer(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Request:
    """One fact to write.

    White space at the edges of its texts does not count: spaces at a prompt's end are the one
    before the answer (`jaxedit.edits.spaces`), those at a subject's edges belong to the prompt
    around it. A list may stand for a tuple.

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
      leading_space: between a prompt and its answer, in edits, metrics and what is generated, one
        of `jaxedit.edits.spaces.SPACES`; None: as the editor has it, in metrics one space.

    Raises:
      ValueError: on a prompt without exactly one `{}`, an empty subject or target, or a field that
        is no text, or no list of texts.
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
    leading_space: str | None = None

    def __post_init__(self):
        self._check_types()
        n_places = self.prompt.count("{}")
        if n_places != 1:
            raise ValueError(
                f"the prompt {self.prompt!r} has {n_places} places {{}} for the subject, "
                'expected exactly one, e.g. "{} is located in the city of"'
            )
        for name in ("subject", "target_new"):
            if not getattr(self, name).strip():
                raise ValueError(f"the request {self.prompt!r} has an empty {name}")
        if self.leading_space is not None:
            check_leading_space(self.leading_space)
        for name, value in self._without_edges().items():
            object.__setattr__(self, name, value)  # frozen: only here

    def _check_types(self) -> None:
        """Raise a ValueError on a field of another type than its own."""
        for name in ("prompt", "subject", "target_new"):
            check_text(getattr(self, name), name)
        for name in ("target_true", "relation", "target_id", "leading_space"):
            if getattr(self, name) is not None:
                check_text(getattr(self, name), name)
        for name in ("paraphrases", "generation_prompts"):
            for i, text in enumerate(_items(getattr(self, name), name, "texts")):
                check_text(text, f"{name}[{i}]")
        for name in ("neighbours", "portability"):
            for i, pair in enumerate(_items(getattr(self, name), name, "pairs (prompt, answer)")):
                if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                    raise ValueError(f"{name}[{i}] must be a pair (prompt, answer), got {pair!r}")
                for text, part in zip(pair, PromptAnswer._fields, strict=True):
                    check_text(text, f"{name}[{i}].{part}")
        is_number = isinstance(self.case_id, int) and not isinstance(self.case_id, bool)
        if self.case_id is not None and not is_number:
            check_text(self.case_id, "case_id", "a whole number or a text")

    def _without_edges(self) -> dict[str, Any]:
        """Return the fields of text without white space at their edges, lists as tuples."""
        # White space at the subject's edges stays where it alone parts it from a word beside it.
        before, after = self.prompt.split("{}")
        start = self.subject[: len(self.subject) - len(self.subject.lstrip())]
        end = self.subject[len(self.subject.rstrip()) :]
        before = before + start if before[-1:].isalnum() else before
        after = end + after if after[:1].isalnum() else after
        fields: dict[str, Any] = {
            "prompt": f"{before}{{}}{after}".lstrip(),
            "subject": self.subject.strip(),
            "target_new": self.target_new.strip(),
            "target_true": self.target_true and self.target_true.strip(),
            "paraphrases": tuple(text.lstrip() for text in self.paraphrases),
            "generation_prompts": tuple(strip_end(t.lstrip()) for t in self.generation_prompts),
        }
        for name in ("neighbours", "portability"):
            pairs = getattr(self, name)
            fields[name] = tuple(PromptAnswer(p.lstrip(), answer.strip()) for p, answer in pairs)
        return fields

    @property
    def prompt_text(self) -> str:
        """The prompt with the subject in its place, as a model is asked."""
        return strip_end(self.prompt.replace("{}", self.subject))

    @property
    def summary(self) -> str:
        """The request in one line, for tables and logs."""
        return f"{self.prompt_text} → {self.target_new}"


def check_text(value: Any, what: str, expected: str = "a text") -> None:
    """Raise a ValueError where a value is no text that can be written in UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be {expected}, got {value!r}")
    check_surrogates(value, what)


def _items(value: Any, name: str, of: str) -> Sequence[Any]:
    """Return a list or tuple as it is; raise a ValueError on anything else."""
    if isinstance(value, PromptAnswer) or not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list of {of}, got {value!r}")
    return value


def check_requests(requests: Any) -> list[Request]:
    """Return requests as a list.

    Raises:
      ValueError: on a single request, or anything else that is no list of requests.
    """
    if not isinstance(requests, list | tuple):
        raise ValueError(f"expected a list of requests, got {requests!r}; give [request] for one")
    for i, request in enumerate(requests):
        if not isinstance(request, Request):
            raise ValueError(f"expected a list of requests; number {i} of it is {request!r}")
    return list(requests)


def with_leading_space(requests: list[Request], leading_space: str | None) -> list[Request]:
    """Return requests that say of themselves how an editor joins their targets.

    Metrics and what is generated then join them in the same way. Those that say it already stay as
    they are; so do all where it is "joined", which metrics take anyway, and where it is
    "separate-no-space": the released code of NSE, whose values it belongs to, asks with a space.

    Args:
      requests: any number.
      leading_space: the editor's hyper-parameter; None: it has none.
    """
    if leading_space not in ("separate", "none"):
        return requests
    return [
        request
        if request.leading_space is not None
        else dataclasses.replace(request, leading_space=leading_space)
        for request in requests
    ]


def request_from_json(values: Mapping[str, Any]) -> Request:
    """Read a request from JSON, whose lists were tuples."""
    fields: dict[str, Any] = dict(values)
    for name in ("paraphrases", "generation_prompts"):
        fields[name] = tuple(fields.get(name, ()))
    for name in ("neighbours", "portability"):
        fields[name] = tuple(PromptAnswer(*pair) for pair in fields.get(name, ()))
    return Request(**fields)
