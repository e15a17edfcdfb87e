"""Candidates for hard cases: the built-in ones, and what is taken of a server's replies."""

import json
import re

import pytest

from jaxedit.edits.subjects import find_subject
from jaxedit.hard_cases.asked_candidates import EXAMPLES, read_reply, write_question
from jaxedit.hard_cases.builtin_candidates import (
    Candidate,
    built_in_candidates,
    check_record,
    read_kinds,
    to_fact,
)
from jaxedit.models.built_in import built_in_file
from jaxedit.models.gguf.checkpoint import describe_gguf
from jaxedit.models.gguf.tokenizer import tokenizer_from_metadata

KINDS = read_kinds()
RELATIONS = [(kind["kind"], relation) for kind in KINDS for relation in kind["relations"]]


class EveryWord:
    """A tokenizer of which each word is a token."""

    def encode_with_ends(self, text):
        words = list(re.finditer(r"\w+", text))
        return [0, *range(1, len(words) + 1)], [(0, 0), *(word.span() for word in words)]


# The tables


def test_kinds_are_many_and_each_subject_belongs_to_one():
    assert len({kind["kind"] for kind in KINDS}) == len(KINDS) >= 30
    kind_of: dict[str, str] = {}
    for kind, relation in RELATIONS:
        for subject in " ".join(relation["answers"].values()).split():
            assert kind_of.setdefault(subject, kind) == kind, subject


@pytest.mark.parametrize(("kind", "relation"), RELATIONS)
def test_a_relation_begins_with_its_subject_and_has_other_answers(kind, relation):
    templates, answers = relation["templates"], relation["answers"]
    assert relation.keys() == {"templates", "answers"}
    assert len(set(templates)) == len(templates) >= 1
    assert all(re.fullmatch(r"\{\}('s)?( [\w-]+)+", template) for template in templates)
    assert len(answers) >= 2
    subjects = " ".join(answers.values()).split()
    assert len(set(subjects)) == len(subjects)
    assert all(re.fullmatch(r"[A-Za-z]{2,}", subject) for subject in subjects)


def test_built_in_candidates_pass_the_check_of_records():
    """Also: no prompt twice, and no more of a subject than asked for."""
    found = built_in_candidates(EveryWord(), per_subject=9)
    assert len({each.prompt for each in found}) == len(found)
    for each in found:
        record = {**each._asdict(), "kind": None}
        assert check_record(record, [], 1) == each._replace(kind="")
        assert find_subject(each.prompt, each.subject) == 0
        assert each.target_new.casefold() != each.subject.casefold()


def test_fewer_facts_a_subject_are_the_beginning_of_more():
    once, twice = (built_in_candidates(EveryWord(), n) for n in (1, 2))
    assert twice[: len(once)] == once
    assert len({each.subject for each in once}) == len(once)
    assert len(once) < len(twice) <= 2 * len(once)
    assert len({each.kind for each in once[:30]}) == 30  # kinds take turns


def test_a_wrong_answer_is_another_one_of_the_relation():
    fact = next(
        each for each in built_in_candidates(EveryWord(), 9) if "Japan has its cap" in each[0]
    )
    known = next(r["answers"] for _, r in RELATIONS if r["answers"].get("Tokyo") == "Japan")
    assert fact.ground_truth == "Tokyo"
    assert fact.target_new in set(known) - {"Tokyo"}
    assert to_fact(fact, 7) == {
        "case_id": 7,
        "prompt": "{} has its capital in the city of",
        "subject": "Japan",
        "target_new": fact.target_new,
        "target_true": "Tokyo",
        "kind": "country",
    }


@pytest.mark.parametrize(
    ("name", "n_least"),
    [
        pytest.param("smollm2-135m", 800, marks=pytest.mark.smollm2),
        pytest.param("gemma3-270m", 1300, marks=[pytest.mark.gemma3, pytest.mark.slow]),
    ],
)
def test_subjects_are_one_token_of_the_model_at_the_start(name, n_least):
    metadata, _ = describe_gguf(built_in_file(name))  # without the weights
    tokenizer = tokenizer_from_metadata(metadata)
    found = built_in_candidates(tokenizer)
    assert len(found) >= n_least
    for each in found[::20]:
        tokens = tokenizer.encode(each.prompt, bos=False)
        assert tokenizer.decode(tokens[:1]) == each.subject


# A server's records

GOOD = {
    "prompt": "Rome is a city in",
    "subject": "Rome",
    "target_new": "Spain",
    "ground_truth": "Italy",
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(subject="New York", prompt="New York is in"), "a subject of several words"),
        (dict(prompt="The city of Rome is in"), "does not begin with its subject"),
        (dict(prompt="Romeo is a city in"), "does not begin with its subject"),
        (dict(prompt="Rome"), "without a relation"),
        (dict(prompt="Rome is a city in:"), "without a relation"),
        (dict(prompt="Rome is {} a city in"), "without a relation"),
        (dict(prompt="Rome lies in Italy and in"), "holds an answer"),
        (dict(target_new=" italy"), "the same new and true answer"),
        (dict(target_new=" "), "an empty text"),
        (dict(ground_truth=3), "not an object with the texts prompt, subject"),
        (dict(target_new="a town that is far away from here"), "more than 5 words"),
        (dict(subject="paris", prompt="paris is a city in"), "used already"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(changes, reason):
    known = [Candidate("Paris is a city in", "Paris", "Spain", "France")]
    assert check_record(GOOD, known, 1) == Candidate(*GOOD.values())
    checked = check_record(GOOD | changes, known, 1)
    assert isinstance(checked, str)
    assert reason in checked


def test_a_subject_may_be_used_more_often_with_another_prompt():
    known = [Candidate(**GOOD)]
    other = GOOD | dict(prompt="Rome is a town in")
    assert check_record(other, known, 2) == Candidate(**other)
    assert check_record(other, known, 1) == "a subject that was used already"
    assert check_record(GOOD, known, 2) == "a subject that was used already"


@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```", "Here they are:\n{}\nGood luck!"])
def test_a_reply_is_read_with_code_fences_and_without(fence):
    oslo = dict(prompt="Oslo is in", subject="Oslo", target_new="Chad", ground_truth="Norway")
    records = [GOOD, GOOD, oslo, "Rome"]
    found, rejected = read_reply(fence.replace("{}", json.dumps(records)), [], 1)
    assert found == [Candidate(**GOOD), Candidate(**oslo)]
    assert sorted(rejected.values()) == [1, 1]


@pytest.mark.parametrize("text", ["", "I cannot do that.", "[{", '{"prompt": 1}', "] ["])
def test_a_reply_that_is_no_array_is_counted(text):
    assert read_reply(text, [], 1) == ([], {"a reply that is no JSON array": 1})


def test_a_question_has_the_rules_other_examples_each_time_and_what_is_excluded():
    known = [Candidate(f"W{i} is in", f"W{i}", "a", "b") for i in range(8)]
    first, second = (write_question(known, [Candidate(**GOOD)], turn, 1) for turn in (0, 1))
    for text in ("Write 10 records", "exactly ONE", "W0 is in", "W4 is in", "W0, W1", "Rome"):
        assert text in first
    assert "W5 is in" not in first
    assert "W5 is in" in second
    assert "Rome" not in write_question(EXAMPLES, [Candidate(**GOOD)], 0, 2)
    for example in EXAMPLES:
        assert check_record(example._asdict(), [], 1) == example


def test_an_empty_array_before_the_records_is_no_answer():
    records = json.dumps([GOOD])
    found, rejected = read_reply(f"<think>Used so far: [] .</think>{records}", [], 1)
    assert (len(found), rejected.total()) == (1, 0)
    assert read_reply("There are none: []", [], 1) == ([], {})
