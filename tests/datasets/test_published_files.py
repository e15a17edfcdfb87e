"""The files that come with the package, and those that others published, are read whole."""

import json

from jaxedit.datasets import read_requests, read_texts
from jaxedit.edits.request import PromptAnswer, Request


def test_the_builtin_facts_are_read():
    found = read_requests("builtin")
    assert (found.n_skipped, found.form) == (0, "own")
    assert len({request.prompt_text for request in found.requests}) == len(found.requests)


def test_all_of_counterfact_is_read(shared):
    path = shared / "data/counterfact/counterfact-edit.json"
    found = read_requests(str(path))
    assert (len(found.requests), found.n_skipped, found.form) == (10_000, 0, "counterfact-flat")
    assert found.requests[0] == Request(
        prompt="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_new="English",
        target_true="French",
        paraphrases=("Where Danielle Darrieux is from, people speak the language of",),
        neighbours=(PromptAnswer("Michel Rocard is a native speaker of", "French"),),
        case_id=0,
    )
    records = json.loads(path.read_text(encoding="utf-8"))
    for request, record in zip(found.requests, records, strict=True):
        assert (request.prompt_text, request.case_id) == (record["prompt"], record["case_id"])


def test_all_of_zsre_is_read(shared):
    path = shared / "data/zsre/zsre_mend_train-1k.json"
    found = read_requests(str(path))
    n_without_alt = 2
    assert (len(found.requests), found.n_skipped, found.form) == (998, n_without_alt, "zsre")
    assert found.requests[0] == Request(
        prompt="What is the product made by {}?",
        subject="UniFirst",
        target_new="unmanned aircraft",
        target_true="uniform",
        paraphrases=("What will be the product of UniFirst?",),
        neighbours=(
            PromptAnswer("john goodman's character in the big lebowski?", "Walter Sobchak"),
        ),
    )
    records = [record for record in json.loads(path.read_text(encoding="utf-8")) if record["alt"]]
    questions = [record["src"] for record in records]
    assert [request.prompt_text for request in found.requests] == questions


def test_the_builtin_texts_are_read():
    texts = read_texts("builtin")
    assert all(text.strip() for text in texts)
    assert len(set(texts)) == len(texts)


def test_all_of_me_ppl_is_read(shared):
    path = shared / "data/me-ppl/ME-PPL.json"
    texts = read_texts(str(path))
    assert texts == [record["Text"] for record in json.loads(path.read_text(encoding="utf-8"))]
    assert len(texts) == 10_000
    assert sum(text.startswith(" ") for text in texts) > 1000
