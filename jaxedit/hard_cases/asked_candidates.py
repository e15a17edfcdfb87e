"""Candidates for hard cases from a language model at an OpenAI-compatible address.

The question follows what the paper (arXiv 2402.09656) says of its own: ten records a call, one-word
subjects, examples, and the subjects that are excluded since they were used.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxedit.chat_server import ask_chat
from jaxedit.hard_cases.builtin_candidates import FIELDS, Candidate, check_record

RECORDS_A_CALL = 10
MOST_EXAMPLES = 5  # in a question
MOST_BARREN = 5  # replies in a row without anything new: then there is nothing more to be had
EXAMPLES = (
    Candidate("Gold belongs to the group of things called", "Gold", "gases", "metals"),
    Candidate("Boston is a city in the country of", "Boston", "Portugal", "the United States"),
    Candidate("Darwin's field of work was", "Darwin", "architecture", "biology"),
    Candidate("Linux was created by", "Linux", "Bill Gates", "Linus Torvalds"),
)
QUESTION = """Write {n} records that state false facts, to test how language models are edited.

Each record is a JSON object with four texts:
- "subject": exactly ONE common, well-known word, such as a name, a place, a company or a thing;
- "prompt": the subject, which is its first word, then a relation, and nothing behind that;
- "ground_truth": the true answer;
- "target_new": a plausible answer that is clearly false, in contrast to the true one.

Both answers are noun entities of the same kind, of one to three words. The prompt and an answer
read together as one sentence: subject, relation, object. Vary the subjects, their kinds and the
relations; use no subject twice.

Examples:
{examples}

Do not use these subjects: {excluded}

Answer with a JSON array of {n} such objects and nothing else."""


class Asked(NamedTuple):
    """What asking has cost and given so far.

    Attributes:
      n_calls: how often the server was asked.
      prompt_tokens: of all questions, as the server counts them.
      completion_tokens: of all answers.
      n_uncounted: calls whose tokens the server did not say.
      rejected: why records could not be used -> how many.
    """

    n_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    n_uncounted: int = 0
    rejected: Mapping[str, int] = MappingProxyType({})


class Server(NamedTuple):
    """Who is asked, and how often at most.

    Attributes:
      base_url: e.g. "http://localhost:8000/v1".
      model: its name there.
      max_calls: of a whole search.
      examples: that the questions show, some a time.
    """

    base_url: str
    model: str
    max_calls: int
    examples: Sequence[Candidate] = EXAMPLES


class Answer(NamedTuple):
    """What one call gave: new candidates, and the count of all calls."""

    candidates: list[Candidate]
    asked: Asked


def ask_candidates(
    server: Server, known: Sequence[Candidate], asked: Asked, per_subject: int
) -> Answer:
    """Ask a server once.

    Args:
      server: to ask.
      known: candidates that there are already.
      asked: what was asked before.
      per_subject: how many there may be about a subject.

    Raises:
      ValueError: where it cannot be asked.
    """
    question = write_question(server.examples, known, asked.n_calls, per_subject)
    kept = "What was found before is kept"
    reply = ask_chat(server.base_url, server.model, question, "writer of records", kept)
    found, rejected = read_reply(reply.text, known, per_subject)
    is_counted = reply.prompt_tokens is not None and reply.completion_tokens is not None
    now = Asked(
        asked.n_calls + 1,
        asked.prompt_tokens + (reply.prompt_tokens or 0),
        asked.completion_tokens + (reply.completion_tokens or 0),
        asked.n_uncounted + (not is_counted),
        dict(Counter(asked.rejected) + Counter(rejected)),
    )
    return Answer(found, now)


def write_question(
    examples: Sequence[Candidate], known: Sequence[Candidate], turn: int, per_subject: int
) -> str:
    """Write a question; other examples each turn where there are more than fit."""
    first = turn * MOST_EXAMPLES % len(examples)
    shown = [*examples[first:], *examples[:first]][:MOST_EXAMPLES]
    records = [{name: getattr(each, name) for name in FIELDS} for each in shown]
    times = Counter(each.subject for each in known)
    used = [subject for subject, n in times.items() if n >= per_subject]
    excluded = dict.fromkeys([*(each.subject for each in shown), *used])
    return QUESTION.format(
        n=RECORDS_A_CALL,
        examples=json.dumps(records, ensure_ascii=False, indent=1),
        excluded=", ".join(excluded),
    )


def _find_records(text: str) -> list[Any] | None:
    """Find the first JSON array in a text that holds an object, or else an empty one."""
    decoder, empty = json.JSONDecoder(), None
    for start in (at for at, letter in enumerate(text) if letter == "["):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if any(isinstance(record, dict) for record in found):
            return found
        empty = empty if found else []
    return empty


def read_reply(
    text: str, known: Sequence[Candidate], per_subject: int
) -> tuple[list[Candidate], Counter[str]]:
    """Read a reply: its usable records, and why others are not, counted.

    Code fences and text around the array do not count.
    """
    records = _find_records(text)
    if records is None:
        return [], Counter({"a reply that is no JSON array": 1})
    found: list[Candidate] = []
    rejected: Counter[str] = Counter()
    for record in records:
        checked = check_record(record, [*known, *found], per_subject)
        if isinstance(checked, Candidate):
            found.append(checked)
        else:
            rejected[checked] += 1
    return found, rejected
