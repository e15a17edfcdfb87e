"""Subjects in prompts: where one stands as a word, and which requests contradict each other."""

import unicodedata
from collections.abc import Iterator

from jaxedit.edits.request import Request

# Scripts whose words follow one another without a space, and Hangul, whose particles follow a noun
# without one: how the names of their letters begin.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR")
ZERO_WIDTH_JOINER = "\u200d"


def find_subject(prompt: str, subject: str) -> int | None:
    """Find the first place where a subject stands in a prompt as a word, not inside one.

    The first one is what causal tracing takes (arXiv 2202.05262). "Ann" is not in "Annual", nor
    "BP" in "BPA", but "東京" is in "東京の人口".

    Returns:
      The index of its first character; None where there is no such place.
    """
    return next(_places(prompt, subject), None)


def to_template(full_prompt: str, subject: str) -> str:
    """Replace the first occurrence of the subject in a full prompt, as a word, by `{}`.

    Raises:
      ValueError: where the subject does not occur.
    """
    subject = subject.strip()
    at = find_subject(full_prompt, subject) if subject else None
    if at is None:
        raise ValueError(f"the subject {subject!r} does not occur in the prompt {full_prompt!r}")
    return f"{full_prompt[:at]}{{}}{full_prompt[at + len(subject) :]}"


def as_template(prompt: str, subject: str) -> str:
    """Return a prompt with `{}` for its subject, which may be written out in it once.

    Raises:
      ValueError: where the subject is written out more than once, or does not occur.
    """
    subject = subject.strip()
    if "{}" in prompt or not subject:
        return prompt
    n_places = len(list(_places(prompt, subject)))
    if n_places > 1:
        raise ValueError(
            f"the subject {subject!r} stands {n_places} times in the prompt {prompt!r}: write {{}} "
            "in the place that is meant"
        )
    return to_template(prompt, subject)


def contradictions(requests: list[Request]) -> list[str]:
    """Find requests that want different answers to the same prompt, which no one edit can give.

    Prompts are the same, and so are answers, whatever their white space and case.

    Returns:
      A line for each such prompt, with its answers in their order.
    """
    answers: dict[str, dict[str, str]] = {}
    prompts: dict[str, str] = {}
    for request in requests:
        asked = _normalised(request.prompt_text)
        prompts.setdefault(asked, request.prompt_text)
        given = answers.setdefault(asked, {})
        given.setdefault(_normalised(request.target_new), request.target_new)
    return [
        f"{prompts[asked]!r}: {', '.join(map(repr, given.values()))}"
        for asked, given in answers.items()
        if len(given) > 1
    ]


def _places(prompt: str, subject: str) -> Iterator[int]:
    at = prompt.find(subject)
    while at >= 0:
        end = at + len(subject)
        is_inside = _joins(prompt[at - 1 : at], subject[0]) or _joins(
            subject[-1], prompt[end : end + 1]
        )
        if not is_inside:
            yield at
        at = prompt.find(subject, at + 1)


def _joins(left: str, right: str) -> bool:
    """Return whether two letters that follow one another belong to one word; "" is the edge."""
    if not (left and right):
        return False
    if unicodedata.category(right).startswith("M") or ZERO_WIDTH_JOINER in (left, right):
        return True  # an accent, a vowel sign, the rest of an emoji
    are_letters = all(c.isalnum() or unicodedata.category(c).startswith("M") for c in (left, right))
    return are_letters and not any(_is_unspaced(c) for c in (left, right))


def _is_unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(UNSPACED)


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
