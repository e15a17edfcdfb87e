"""A record that cannot be read is named, with its file and with what is wrong."""

import pytest
from record_examples import (
    COUNTERFACT,
    EXAMPLES,
    FLAT,
    KNOWEDIT,
    KNOWN,
    OWN,
    ZSRE,
    changed,
    write,
)

from jaxedit.datasets import form_module, form_names, read_requests

FORM_FIELDS = [(form, field) for form in form_names() for field in form_module(form).FIELDS]
RECORDS = {form: record for form, (record, _) in EXAMPLES.items()} | {"known": KNOWN}


@pytest.mark.parametrize(("form", "field"), FORM_FIELDS)
def test_a_field_of_the_wrong_type_is_named(form, field, tmp_path):
    record, name = RECORDS[form], field.removesuffix("?")
    source = write(tmp_path / "some.json", [record, changed(record, (name,), 1.5)])
    message = rf"some\.json, record 1 .*{form}\): {name} must be .*got 1\.5"
    with pytest.raises(ValueError, match=message):
        read_requests(source)


@pytest.mark.parametrize(("form", "field"), [(o, f) for o, f in FORM_FIELDS if f[-1] != "?"])
def test_a_missing_field_is_named(form, field, tmp_path):
    record = RECORDS[form]
    without = {key: value for key, value in record.items() if key != field}
    source = write(tmp_path / "some.json", [record, without])
    message = rf"some\.json, record 1 .*the record has no '{field}'"
    with pytest.raises(ValueError, match=message):
        read_requests(source)


@pytest.mark.parametrize("form", RECORDS)
def test_a_record_that_is_no_object_is_named(form, tmp_path):
    source = write(tmp_path / "some.json", [RECORDS[form], "text"])
    with pytest.raises(ValueError, match=r"record 1 .*the record must be an object, got \"text\""):
        read_requests(source)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            changed(OWN, ("target",), "Rome"),
            "unknown key 'target'; known are prompt, subject, target_new",
        ),
        (
            changed(OWN, ("neighbours", 0, "answr"), "Rome"),
            r"neighbours\[0\] has the unknown key 'answr'",
        ),
        (changed(OWN, ("neighbours", 0), {"prompt": "a"}), r"neighbours\[0\] has no 'answer'"),
        (changed(OWN, ("paraphrases", 0), None), r"paraphrases\[0\] must be a string, got null"),
        (changed(OWN, ("prompt",), "The tower is in"), "'The Eiffel Tower' does not occur"),
        (changed(OWN, ("prompt",), "{} and {} are in"), "has 2 places"),
        (changed(OWN, ("subject",), ""), "empty subject"),
        (
            changed(COUNTERFACT, ("requested_rewrite", "target_new"), "Rome"),
            "requested_rewrite.target_new must be an object",
        ),
        (
            changed(COUNTERFACT, ("requested_rewrite", "target_true"), {}),
            "requested_rewrite.target_true has no 'str'",
        ),
        (changed(COUNTERFACT, ("requested_rewrite", "prompt"), "no place"), "has 0 places"),
        (changed(FLAT, ("locality_ground_truth",), None), "no locality_ground_truth"),
        (changed(FLAT, ("subject",), ""), "subject '' does not occur"),
        (changed(ZSRE, ("loc",), "who?"), "loc must begin with 'nq question: '"),
        (
            changed(KNOWEDIT, ("locality",), {"Forgetfulness": [{"question": "?"}]}),
            r"locality\.Forgetfulness\[0\] must be an object with a prompt",
        ),
    ],
)
def test_a_wrong_record_is_told_what_is_wrong(record, message, tmp_path):
    with pytest.raises(ValueError, match=rf"some\.json, record 0 .*{message}"):
        read_requests(write(tmp_path / "some.json", [record]))


@pytest.mark.parametrize("subject", ["", "  "])
@pytest.mark.parametrize("form", RECORDS)
def test_an_empty_subject_is_refused_in_every_form(form, subject, tmp_path):
    """It is a mistake of the file, unlike a subject that the prompt spells otherwise."""
    record = RECORDS[form]
    place = "subject" if "subject" in record else "requested_rewrite"
    rewritten = record[place]
    if isinstance(rewritten, list):
        rewritten = [{**rewrite, "subject": subject} for rewrite in rewritten]
    elif isinstance(rewritten, dict):
        rewritten = {**rewritten, "subject": subject}
    else:
        rewritten = subject
    other = {**KNOWN, "attribute": "Asia"} if form == "known" else record
    source = write(tmp_path / "some.json", [other, {**record, place: rewritten}])
    with pytest.raises(ValueError, match=r"some\.json.*(subject '\s*' does not|an empty subject)"):
        read_requests(source)


def test_an_unknown_form_is_told_the_known_ones(tmp_path):
    source = write(tmp_path / "some.json", [{"question": "who?", "answer": "me"}])
    message = r"some\.json: the first record has the keys answer, question"
    with pytest.raises(ValueError, match=message) as caught:
        read_requests(source)
    for name in form_names():
        assert f"{name} ({', '.join(sorted(form_module(name).KEYS))})" in str(caught.value)


def test_a_first_record_that_is_no_object_is_shown(tmp_path):
    with pytest.raises(ValueError, match='the first record is "who"'):
        read_requests(write(tmp_path / "some.json", ["who"]))


def test_a_file_without_anything_to_edit_is_refused(tmp_path):
    source = write(tmp_path / "some.json", [{**OWN, "target_new": ""}] * 2)
    message = r"some\.json holds nothing to edit: in all 2 records \(form own\)"
    with pytest.raises(ValueError, match=message):
        read_requests(source)
