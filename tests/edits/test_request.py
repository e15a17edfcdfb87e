"""Requests: what is refused when one is made, and the texts made from one."""

import dataclasses

import pytest

from jaxedit import PromptAnswer, Request, make_editor
from jaxedit.editors import method_names
from jaxedit.edits.request import check_requests, with_leading_space
from jaxedit.metrics.facts import evaluate_facts


@pytest.mark.parametrize(
    ("prompt", "n_places"),
    [
        ("BP is based in", 0),
        ("", 0),
        ("{subject} is in", 0),
        ("{} and {} are in", 2),
        ("{}{}{}", 3),
    ],
)
def test_a_prompt_has_exactly_one_place(prompt, n_places):
    message = rf"has {n_places} places {{}} for the subject, expected exactly one"
    with pytest.raises(ValueError, match=message) as caught:
        Request(prompt, "BP", "Munich")
    assert repr(prompt) in str(caught.value)
    assert '"{} is located in the city of"' in str(caught.value)  # an example of what is right


@pytest.mark.parametrize("field", ["subject", "target_new"])
@pytest.mark.parametrize("nothing", ["", " ", "\n\t "])
def test_subject_and_target_are_not_empty(field, nothing):
    fields = {"prompt": "{} is based in", "subject": "BP", "target_new": "Munich", field: nothing}
    with pytest.raises(ValueError, match=f"'{{}} is based in' has an empty {field}"):
        Request(**fields)


def test_the_prompts_text_and_the_summary_hold_the_subject():
    request = Request("The head office of {}, they say, is in", "BP", "Munich")
    assert request.prompt_text == "The head office of BP, they say, is in"
    assert request.summary == "The head office of BP, they say, is in → Munich"


def test_a_subject_with_braces_is_taken_as_it_is():
    request = Request("{} is a kind of", "{} in Python", "set")
    assert request.prompt_text == "{} in Python is a kind of"


def test_a_request_is_a_value():
    request = Request("{} is in", "Rome", "Italy")
    assert request == Request("{} is in", "Rome", "Italy")
    assert request != dataclasses.replace(request, target_new="Spain")
    assert len({request, Request("{} is in", "Rome", "Italy")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.subject = "Paris"
    with pytest.raises(ValueError, match="has an empty subject"):
        dataclasses.replace(request, subject="")


@pytest.mark.parametrize(
    "spaced",
    [
        {"subject": "BP "},
        {"subject": " BP"},
        {"subject": " BP ", "prompt": "In {}, the head office of"},
        {"prompt": "  {} is in"},
        {"target_new": " Rome\n"},
        {"target_true": " Oslo "},
        {"paraphrases": [" BP lies in"]},
        {"neighbours": [(" Shell is in", " Oslo ")]},
        {"portability": [(" Its flag is", " Oslo ")]},
        {"generation_prompts": [" BP is "]},
    ],
)
def test_white_space_at_edges_does_not_count(spaced):
    fields = {"prompt": "{} is in", "subject": "BP", "target_new": "Rome", **spaced}

    def stripped(value):
        return value.strip() if isinstance(value, str) else [stripped(each) for each in value]

    assert Request(**fields) == Request(**{name: stripped(value) for name, value in fields.items()})


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("{}is in", "BP ", "BP is in"),
        ("In{} is", " Rome", "In Rome is"),
        ("In {}, is", " Rome ", "In Rome, is"),
        ("I like {}", "Rome ", "I like Rome"),
    ],
)
def test_a_space_at_the_subjects_edge_parts_it_from_a_word(prompt, subject, text):
    request = Request(prompt, subject, "Oslo")
    assert (request.prompt_text, request.subject) == (text, subject.strip())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": None}, "prompt must be a text, got None"),
        ({"subject": 3}, "subject must be a text, got 3"),
        ({"target_new": 1998}, "target_new must be a text, got 1998"),
        ({"target_new": True}, "target_new must be a text, got True"),
        ({"target_true": float("nan")}, "target_true must be a text, got nan"),
        ({"paraphrases": "BP lies in"}, "paraphrases must be a list of texts, got 'BP lies in'"),
        ({"paraphrases": [None]}, r"paraphrases\[0\] must be a text, got None"),
        ({"paraphrases": None}, "paraphrases must be a list of texts, got None"),
        ({"generation_prompts": "BP"}, "generation_prompts must be a list of texts"),
        ({"neighbours": PromptAnswer("a", "b")}, "neighbours must be a list of pairs"),
        ({"neighbours": ["ab"]}, r"neighbours\[0\] must be a pair \(prompt, answer\), got 'ab'"),
        ({"portability": [("a", None)]}, r"portability\[0\].answer must be a text, got None"),
        ({"case_id": 1.5}, "case_id must be a whole number or a text, got 1.5"),
        ({"case_id": True}, "case_id must be a whole number or a text, got True"),
        ({"subject": "\ud83d"}, "subject holds half a surrogate pair"),
        ({"leading_space": "some"}, "leading_space='some': expected one of 'joined'"),
    ],
)
def test_a_field_that_is_no_text_is_refused(wrong, message):
    fields = {"prompt": "{} is in", "subject": "BP", "target_new": "Rome", **wrong}
    with pytest.raises(ValueError, match=message):
        Request(**fields)


def test_lists_stand_for_tuples():
    request = Request(
        "{} is in", "BP", "Rome", paraphrases=["BP lies in"], portability=[["a", "b"]]
    )
    assert request.paraphrases == ("BP lies in",)
    assert request.portability == (PromptAnswer("a", "b"),)
    assert len({request, dataclasses.replace(request)}) == 1


@pytest.mark.parametrize("wrong", ["BP", Request("{} is in", "BP", "Rome"), None, ["BP"], [None]])
def test_what_is_no_list_of_requests_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a list of requests"):
        check_requests(wrong)
    if isinstance(wrong, Request | list):
        for name in method_names():
            editor = make_editor(name)
            for call in filter(None, (editor.edit, editor.edit_each, editor.bound_updates)):
                with pytest.raises(ValueError, match="expected a list of requests"):
                    call(None, wrong, None)
        with pytest.raises(ValueError, match="expected a list of requests"):
            evaluate_facts(None, wrong)


def test_requests_get_the_editors_space_unless_they_say_their_own():
    plain = Request("{} is in", "BP", "Rome")
    own = dataclasses.replace(plain, leading_space="joined")
    for leading_space in ("none", "separate"):
        first, second = with_leading_space([plain, own], leading_space)
        assert (first.leading_space, second.leading_space) == (leading_space, "joined")
    # What metrics take anyway; what NSE's released code does in its optimisation alone.
    for leading_space in ("joined", "separate-no-space", None):
        assert with_leading_space([plain, own], leading_space) == [plain, own]
