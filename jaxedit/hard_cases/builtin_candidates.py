"""Candidates for hard cases: facts about one-word subjects that stand at the start of the prompt.

HardEdit's records (arXiv 2402.09656): a subject of one common word stands first, the rest of the
prompt is a relation, and the new answer is a plausible, clearly false one beside the true one. The
built-in ones, `datasets/demo/one_word_facts.json`, were written for this project; those of a server
are checked here.
"""

import importlib.resources
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxedit.edits.subjects import find_subject
from jaxedit.files import parse_json
from jaxedit.models.tokenizer import Tokenizer

FILE = "one_word_facts.json"
FIELDS = ("prompt", "subject", "target_new", "ground_truth")
MOST_ANSWER_WORDS = 5  # an answer is a noun or a name, not a sentence


class Candidate(NamedTuple):
    """A fact that may be a hard case.

    Attributes:
      prompt: with the subject written out at its start.
      subject: one word.
      target_new: the new answer, which is false.
      ground_truth: the true one.
      kind: of subject, where it is known.
    """

    prompt: str
    subject: str
    target_new: str
    ground_truth: str
    kind: str = ""


def built_in_candidates(tokenizer: Tokenizer, per_subject: int = 1) -> list[Candidate]:
    """Return the built-in facts whose subject is one token of a model at the start of the prompt.

    Kinds of subject take turns. The list for fewer facts a subject is the beginning of that for
    more.

    Args:
      tokenizer: of the model.
      per_subject: how many facts about a subject there may be, with different prompts.
    """
    by_kind = [list(_facts_of(kind)) for kind in read_kinds()]
    found: list[Candidate] = []
    for turn in range(per_subject):
        of_turn = [[facts[turn] for facts in subjects if len(facts) > turn] for subjects in by_kind]
        rows = itertools.zip_longest(*of_turn)
        found += [each for row in rows for each in row if each is not None]
    return [each for each in found if is_one_token(tokenizer, each)]


def read_kinds() -> list[dict[str, Any]]:
    """Read the kinds of subject: `{"kind": ..., "relations": [{"templates", "answers"}]}`.

    Templates have `{}` for the subject; answers are true, each with its subjects, a space between.
    """
    file = importlib.resources.files("jaxedit.datasets").joinpath("demo", FILE)
    return parse_json(file.read_bytes(), FILE, list)


def is_one_token(tokenizer: Tokenizer, candidate: Candidate) -> bool:
    """Tell whether a candidate's subject is one token, as it stands at the start of its prompt."""
    _, offsets = tokenizer.encode_with_ends(candidate.prompt)
    first = next((end for _, end in offsets if end > 0), 0)  # behind a begin-of-text token
    return first == len(candidate.subject)


def _facts_of(kind: Mapping[str, Any]) -> Iterator[list[Candidate]]:
    """Yield the facts about each subject of a kind, other relations before other wordings."""
    relations = [(relation["templates"], _answers(relation)) for relation in kind["relations"]]
    most = max(len(templates) for templates, _ in relations)
    subjects = dict.fromkeys(subject for _, answers in relations for subject in answers)
    for i, subject in enumerate(subjects):
        facts = [
            Candidate(templates[wording].replace("{}", subject), subject, *answers[subject])
            for wording in range(most)
            for templates, answers in relations
            if wording < len(templates) and subject in answers
        ]
        turned = facts[i % len(facts) :] + facts[: i % len(facts)]
        yield [each._replace(kind=kind["kind"]) for each in turned]


def _answers(relation: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return subject -> a false answer, which is that of others, and its true one."""
    known = relation["answers"]
    pairs = [(subject, true) for true, subjects in known.items() for subject in subjects.split()]
    found = {}
    for i, (subject, true) in enumerate(pairs):
        # What is false of a subject is no answer of its own, nor the subject again.
        own = (true.casefold(), subject.casefold())
        others = [answer for answer in known if not set(own) & {answer.casefold(), _last(answer)}]
        found[subject] = others[i % len(others)], true
    return found


def _last(answer: str) -> str:
    return answer.casefold().split()[-1]


def check_record(record: Any, known: Sequence[Candidate], per_subject: int) -> Candidate | str:
    """Check a record that a server made; return it, or why it cannot be used.

    Args:
      record: with `FIELDS`; others do not count.
      known: candidates that there are already.
      per_subject: how many there may be about a subject.
    """
    texts = [record.get(name) for name in FIELDS] if isinstance(record, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        return f"not an object with the texts {', '.join(FIELDS)}"
    prompt, subject, new, true = (" ".join(str(text).split()) for text in texts)
    if not all(_is_unicode(text) for text in (prompt, subject, new, true)):
        return "a text with half a character"
    if not (prompt and subject and new and true):
        return "an empty text"
    if " " in subject:
        return "a subject of several words"
    if not prompt.startswith(subject) or find_subject(prompt, subject) != 0:
        return "a prompt that does not begin with its subject"
    relation = prompt[len(subject) :]
    if not relation.strip() or not prompt[-1].isalnum() or set("{}") & set(prompt):
        return "a prompt without a relation that an answer can follow"
    if any(
        find_subject(prompt.casefold(), answer.casefold()) is not None for answer in (new, true)
    ):
        return "a prompt that holds an answer"
    if max(len(new.split()), len(true.split())) > MOST_ANSWER_WORDS:
        return f"an answer of more than {MOST_ANSWER_WORDS} words"
    if new.casefold() == true.casefold():
        return "the same new and true answer"
    same = [each for each in known if each.subject.casefold() == subject.casefold()]
    if len(same) >= per_subject or prompt.casefold() in {each.prompt.casefold() for each in same}:
        return "a subject that was used already"
    return Candidate(prompt, subject, new, true)


def _is_unicode(text: str) -> bool:
    """Tell whether a text can be written to a file; JSON may hold half of a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def to_fact(candidate: Candidate, number: int) -> dict[str, Any]:
    """Return a candidate as a record of this project's own form."""
    fact = {
        "case_id": number,
        "prompt": "{}" + candidate.prompt[len(candidate.subject) :],
        "subject": candidate.subject,
        "target_new": candidate.target_new,
        "target_true": candidate.ground_truth,
    }
    return fact | ({"kind": candidate.kind} if candidate.kind else {})


def read_candidates(records: Iterable[Mapping[str, str]]) -> list[Candidate]:
    """Read candidates from JSON."""
    return [Candidate(**record) for record in records]
