"""Every form of record becomes the requests it describes; unusable records are counted."""

import pytest
from record_examples import ANSWER_PATHS, EXAMPLES, KNOWN, MQUAKE, TOGETHER, ZSRE, changed, write

from jaxedit.datasets import form_module, form_names, read_requests
from jaxedit.edits.request import PromptAnswer, Request


def test_every_form_has_an_example():
    assert form_names() == sorted([*EXAMPLES, *TOGETHER]) == sorted([*ANSWER_PATHS, *TOGETHER])
    for name in form_names():
        form = form_module(name)
        assert isinstance(form.KEYS, frozenset)
        # What tells a form is required, unless there is another way to tell it.
        more = getattr(form, "MORE_KEYS", ())
        required = {key.removesuffix("?") if more else key for key in form.FIELDS}
        for told in (form.KEYS, *more):
            assert required >= told


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL"])
@pytest.mark.parametrize("form", EXAMPLES)
def test_a_record_becomes_its_request(form, suffix, tmp_path):
    record, expected = EXAMPLES[form]
    source = write(tmp_path / f"records{suffix}", [record, record])
    assert read_requests(source) == ([expected, expected], 0, form)


@pytest.mark.parametrize("form", EXAMPLES)
@pytest.mark.parametrize("optional", ["absent", "null"])
def test_optional_fields_are_not_needed(form, optional, tmp_path):
    record, expected = EXAMPLES[form]
    module = form_module(form)
    keys = {key.removesuffix("?") for key in module.FIELDS if key.endswith("?")} - module.KEYS
    record = {key: value for key, value in record.items() if key not in keys}
    if optional == "null":
        record |= dict.fromkeys(keys)
    found = read_requests(write(tmp_path / "some.json", [record]))
    assert (found.n_skipped, found.form) == (0, form)
    (request,) = found.requests
    for name in ("prompt", "subject", "target_new"):
        assert getattr(request, name) == getattr(expected, name)


@pytest.mark.parametrize("form", EXAMPLES)
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_answer_is_skipped_and_counted(form, empty, tmp_path):
    record, expected = EXAMPLES[form]
    for path in ANSWER_PATHS[form]:
        source = write(tmp_path / "records.json", [record, changed(record, path, empty), record])
        assert read_requests(source) == ([expected, expected], 1, form), path


@pytest.mark.parametrize("form", ["counterfact-flat", "zsre", "knowedit"])
@pytest.mark.parametrize("subject", ["Nobody", "rOME", "wefs"])
def test_a_subject_that_does_not_occur_exactly_is_skipped_and_counted(form, subject, tmp_path):
    record, expected = EXAMPLES[form]
    source = write(tmp_path / "records.json", [record, {**record, "subject": subject}])
    assert read_requests(source) == ([expected], 1, form)


def test_easyedits_records_may_have_a_neighbour_alone(tmp_path):
    record = {"prompt": "Rome is in", "subject": "Rome", "target_new": "Norway"}
    record |= {"locality_prompt": "Bergen is in", "locality_ground_truth": "Norway"}
    found = read_requests(write(tmp_path / "some.json", [record]))
    assert found.form == "easyedit"
    assert found.requests[0].neighbours == (PromptAnswer("Bergen is in", "Norway"),)
    assert found.requests[0].prompt == "{} is in"


@pytest.mark.parametrize("form", ["counterfact-flat", "easyedit", "zsre", "knowedit"])
def test_a_place_for_the_subject_is_taken_and_several_are_said(form, tmp_path, caplog):
    record, expected = EXAMPLES[form]
    field = "src" if form == "zsre" else "prompt"
    asked = {**record, field: "In {} one speaks"}
    again = {**record, field: f"{record['subject']} is, as {record['subject']}, in"}
    found = read_requests(write(tmp_path / "some.json", [record, asked, again]))
    assert [each.prompt for each in found.requests] == [
        expected.prompt,
        "In {} one speaks",
        f"{{}} is, as {record['subject']}, in",
    ]
    n_several = 1 + (expected.subject in expected.prompt)
    said = f"in {n_several} of 3 prompts the subject stands more than once, and the first"
    assert said in caplog.text


def known(known_id: int, subject: str, attribute: str, relation: str = "P30"):
    return {
        "known_id": known_id,
        "subject": subject,
        "attribute": attribute,
        "prompt": f"{subject} lies in",
        "relation_id": relation,
    }


def test_a_known_fact_takes_the_next_other_answer_of_its_relation(tmp_path):
    records = [
        KNOWN,  # about Antarctica
        known(0, "Lake Vostok", "Antarctica"),
        known(1, "Peru", "South America"),
        known(2, "Nile", ""),  # skipped, and no answer for others
        known(3, "Kenya", "Africa"),
        known(9, "Oslo", "Norway", relation="P31"),  # skipped: the only one of its relation
        {**KNOWN, "subject": "Nobody"},  # skipped: not in its prompt
    ]
    found = read_requests(write(tmp_path / "known.json", records))
    assert (found.form, found.n_skipped) == ("known", 3)
    assert [(r.subject, r.target_true, r.target_new) for r in found.requests] == [
        ("Vinson Massif", "Antarctica", "South America"),
        ("Lake Vostok", "Antarctica", "South America"),
        ("Peru", "South America", "Africa"),
        ("Kenya", "Africa", "Antarctica"),
    ]


def test_a_known_fact_keeps_its_prompt_number_and_relation(tmp_path):
    records = [KNOWN, known(1, "Peru", "South America")]
    first, _ = read_requests(write(tmp_path / "known.json", records)).requests
    assert first == Request(
        prompt="{} is located in the continent of",
        subject="Vinson Massif",
        target_new="South America",
        target_true="Antarctica",
        case_id=4,
        relation="P30",
    )


def test_rewrites_of_one_record_are_requests_and_the_last_asks_the_questions(tmp_path):
    second = {
        **MQUAKE["requested_rewrite"][0],
        "prompt": "The name of the current head of state in {} is",
        "subject": "Croatia",
    }
    both = {**MQUAKE, "requested_rewrite": [*MQUAKE["requested_rewrite"], second]}
    first, last, single = read_requests(write(tmp_path / "mquake.json", [both, MQUAKE])).requests
    assert first.portability == ()
    assert [probe.answer for probe in last.portability] == ["Kolinda Grabar"]
    assert single == EXAMPLES["mquake"][1]


def test_a_zsre_record_without_answers_is_skipped(tmp_path):
    source = write(tmp_path / "records.json", [ZSRE, {**ZSRE, "answers": []}])
    assert read_requests(source).n_skipped == 1


def test_a_question_mark_is_not_doubled(tmp_path):
    source = write(tmp_path / "records.json", [{**ZSRE, "loc": "nq question: who voiced gaston?"}])
    (request,) = read_requests(source).requests
    assert request.neighbours == (PromptAnswer("who voiced gaston?", "Richard White"),)
