"""Requests: what is refused when one is made, and the texts made from one."""

import dataclasses

import pytest

from jaxedit import Request
from jaxedit.edits.request import to_template


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


def test_a_template_has_the_subjects_first_occurrence_replaced():
    assert to_template("Rome is Rome, said the Roman", "Rome") == "{} is Rome, said the Roman"
    assert to_template("In Rome", "Rome") == "In {}"
    prompt = to_template("The mother tongue of Danielle Darrieux is", "Danielle Darrieux")
    request = Request(prompt, "Danielle Darrieux", "English")
    assert request.prompt_text == "The mother tongue of Danielle Darrieux is"


@pytest.mark.parametrize("subject", ["", "Paris", "rome"])
def test_a_template_needs_the_subject_in_the_prompt(subject):
    message = f"the subject '{subject}' does not occur in the prompt 'Rome is in'"
    with pytest.raises(ValueError, match=message):
        to_template("Rome is in", subject)
