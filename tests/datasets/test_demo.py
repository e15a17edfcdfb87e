"""The built-in demo data: its form, that it is our own, and that SmolLM2-135M knows the facts."""

import itertools
import json
import re
from importlib import resources
from pathlib import Path

import pytest

import jaxedit

FOLDER = resources.files("jaxedit.datasets.demo")
FACTS = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
TEXTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
ME_PPL = Path(__file__).parents[3] / "shared/data/me-ppl"
FIELDS = {
    "case_id",
    "prompt",
    "subject",
    "target_true",
    "target_new",
    "paraphrases",
    "neighbours",
    "kind",
}
NOT_KNOWN = {"BP"}


def request_of(fact):
    return jaxedit.Request(
        prompt=fact["prompt"],
        subject=fact["subject"],
        target_new=fact["target_new"],
        target_true=fact["target_true"],
        paraphrases=tuple(fact["paraphrases"]),
        neighbours=tuple(jaxedit.PromptAnswer(**neighbour) for neighbour in fact["neighbours"]),
        case_id=fact["case_id"],
    )


def begins_with(text, answer):
    return re.match(re.escape(" " + answer) + r"\b", text) is not None


def test_counts_and_kinds():
    kinds = [fact["kind"] for fact in FACTS]
    assert set(kinds) == {"normal", "hard"}
    assert kinds.count("normal") >= 40
    assert kinds.count("hard") >= 8
    assert len(TEXTS) >= 60


def test_bp_is_the_first_hard_fact_and_the_hard_ones_are_spread_out():
    places = [i for i, fact in enumerate(FACTS, 1) if fact["kind"] == "hard"]
    assert 7 <= places[0] <= 9
    assert places[1] <= 16
    assert min(b - a for a, b in itertools.pairwise(places)) > 1
    first = FACTS[places[0] - 1]
    fields = ("prompt", "subject", "target_new", "target_true")
    assert [first[field] for field in fields] == ["{} is based in", "BP", "Munich", "London"]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["subject"])
def test_a_record_makes_a_request(fact):
    assert set(fact) == FIELDS
    request = request_of(fact)
    assert request.target_true != request.target_new
    assert request.prompt_text not in request.paraphrases
    assert 1 <= len(request.paraphrases) <= 2
    assert 1 <= len(request.neighbours) <= 2
    for text in (*fact["paraphrases"], *(probe.prompt for probe in request.neighbours)):
        assert "{}" not in text
    for text in (
        request.prompt_text,
        *request.paraphrases,
        request.target_new,
        request.target_true,
        *sum(request.neighbours, ()),
    ):
        assert text == text.strip()
        assert text
    for probe in request.neighbours:
        assert request.subject not in probe.prompt
        assert probe.answer != request.target_new


def test_no_fact_stands_twice():
    assert len({(fact["prompt"], fact["subject"]) for fact in FACTS}) == len(FACTS)
    assert len({fact["subject"] for fact in FACTS}) == len(FACTS)
    assert len({fact["case_id"] for fact in FACTS}) == len(FACTS)


def test_a_neighbour_is_not_about_another_edited_subject():
    subjects = {re.sub("^the ", "", fact["subject"].lower()) for fact in FACTS}
    prompts = [neighbour["prompt"].lower() for fact in FACTS for neighbour in fact["neighbours"]]
    assert not [(s, p) for s in subjects for p in prompts if re.search(rf"\b{re.escape(s)}\b", p)]


def test_hard_prompts_begin_with_the_subject():
    assert all(fact["prompt"].startswith("{}") for fact in FACTS if fact["kind"] == "hard")


def test_texts_are_distinct_sentences():
    assert len(set(TEXTS)) == len(TEXTS)
    for text in TEXTS:
        assert 10 <= len(text.split()) <= 45, text
        assert text == text.strip()
        assert text.rstrip('"')[-1] in ".?!", text


@pytest.mark.skipif(
    not ME_PPL.is_dir(), reason="the shared folder with the ME-PPL texts is not here"
)
def test_no_text_is_from_me_ppl():
    files = sorted(ME_PPL.glob("*.json"))
    theirs = "\n".join(
        record["Text"] for path in files for record in json.loads(path.read_text(encoding="utf-8"))
    )
    assert files
    assert not [text for text in TEXTS if text in theirs]


@pytest.mark.smollm2
def test_the_model_knows_the_facts(smollm2):
    encode = smollm2.tokenizer.encode
    for fact in FACTS:
        single_and_first = fact["prompt"].startswith("{}") and len(encode(fact["subject"])) == 1
        assert single_and_first == (fact["kind"] == "hard"), fact["subject"]
    questions = [request_of(fact).prompt_text for fact in FACTS]
    continued = jaxedit.generate(smollm2, questions, max_new_tokens=6)
    for fact, question, text in zip(FACTS, questions, continued, strict=True):
        assert text.startswith(question)
        if fact["subject"] not in NOT_KNOWN:
            assert begins_with(text[len(question) :], fact["target_true"]), text
