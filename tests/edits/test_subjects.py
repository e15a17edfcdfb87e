"""Subjects as words in prompts, and requests that contradict each other."""

import pytest

from jaxedit import Request
from jaxedit.edits.subjects import contradictions, find_subject, to_template


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("The Annual prize that Ann won", "Ann", "The Annual prize that {} won"),
        ("BPA is not BP, is it", "BP", "BPA is not {}, is it"),
        ("Joann and Ann", "Ann", "Joann and {}"),
        ("Ann's mother", "Ann", "{}'s mother"),
        ("What does C++ mean", "C++", "What does {} mean"),
        ("Is Yahoo! big", "Yahoo!", "Is {} big"),
        ("F16 and F1", "F1", "F16 and {}"),
        ("Zoe\u0301 and Zoe", "Zoe", "Zoe\u0301 and {}"),  # an accent belongs to its letter
        ("रामायण और राम", "राम", "रामायण और {}"),
        ("東京の人口は", "東京", "{}の人口は"),
        ("日本の首都東京は", "東京", "日本の首都{}は"),
        ("서울은 어디", "서울", "{}은 어디"),
        ("ประเทศไทยอยู่ใน", "ไทย", "ประเทศ{}อยู่ใน"),
        ("BP公司在", "BP", "{}公司在"),
        ("BPA公司和BP公司", "BP", "BPA公司和{}公司"),
        ("Москвич и Москва", "Москва", "Москвич и {}"),
        ("👩‍🚀 and 👩 fly", "👩", "👩‍🚀 and {} fly"),
        ("Rome is Rome, said the Roman", "Rome", "{} is Rome, said the Roman"),  # the first one
        ("In Rome", "Rome", "In {}"),
        ("BP is in", " BP ", "{} is in"),
    ],
)
def test_a_subject_is_found_as_a_word(prompt, subject, expected):
    assert to_template(prompt, subject) == expected
    assert Request(expected, subject, "x").prompt_text == prompt


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Rome is in", ""),
        ("Rome is in", "Paris"),
        ("Rome is in", "rome"),
        ("The Annual prize", "Ann"),
        ("The Joann prize", "ann"),
        ("What is BPA", "BP"),
        ("In 1998 he", "199"),
        ("Романов был", "Роман"),
    ],
)
def test_a_template_needs_the_subject_in_the_prompt(prompt, subject):
    assert not subject or find_subject(prompt, subject) is None
    message = f"the subject '{subject}' does not occur in the prompt '{prompt}'"
    with pytest.raises(ValueError, match=message):
        to_template(prompt, subject)


def test_requests_that_want_different_answers_to_a_prompt_are_named():
    requests = [
        Request("{} is in", "BP", "Rome"),
        Request("{} is in", "Shell", "Rome"),
        Request("{}  is in ", "BP", "Oslo"),
        Request("bp {}", "is in", " rome "),  # the same prompt and answer, written otherwise
        Request("{} is in", "Shell", "Rome"),
        Request("{} is near", "BP", "Bonn"),
    ]
    assert contradictions(requests) == ["'BP is in': 'Rome', 'Oslo'"]
    assert contradictions(requests[3:]) == []
    assert contradictions([]) == []


def test_all_of_counterfacts_contradictions_are_found(shared):
    """Counted here by hand: prompts of the file that are asked for two answers."""
    from jaxedit.datasets import read_requests

    requests = read_requests(str(shared / "data/counterfact/counterfact-edit.json")).requests
    wanted: dict[str, set[str]] = {}
    for request in requests:
        wanted.setdefault(request.prompt_text, set()).add(request.target_new)
    assert len(contradictions(requests)) >= sum(len(each) > 1 for each in wanted.values()) > 50
