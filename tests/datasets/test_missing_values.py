"""Missing values, numbers and texts in place of lists are never read as texts of their own."""

import json

import pytest
from record_examples import (
    COUNTERFACT,
    EXAMPLES,
    FLAT,
    KNOWEDIT,
    KNOWN,
    MQUAKE,
    OWN,
    ZSRE,
    changed,
    write,
)

from jaxedit.datasets import form_module, read_requests, read_texts
from jaxedit.edits.request import PromptAnswer

NAN = float("nan")
RECORDS = {form: record for form, (record, _) in EXAMPLES.items()} | {"known": KNOWN}


def read_all(path, *records):
    return read_requests(write(path / "some.json", list(records))).requests


@pytest.mark.parametrize("form", EXAMPLES)
def test_the_nan_of_pandas_is_a_missing_field(form, tmp_path):
    """A column with gaps: `json` writes and reads NaN."""
    record, _ = EXAMPLES[form]
    optional = [key.removesuffix("?") for key in form_module(form).FIELDS if key.endswith("?")]
    gaps = {**record, **dict.fromkeys(optional, NAN)}
    nulls = {**record, **dict.fromkeys(optional)}
    assert read_all(tmp_path, gaps) == read_all(tmp_path, nulls)


@pytest.mark.parametrize(
    ("record", "key"),
    [(COUNTERFACT, "case_id"), (FLAT, "case_id"), (MQUAKE, "case_id"), (OWN, "case_id")],
)
@pytest.mark.parametrize(
    ("number", "expected"), [(1.0, 1), (0.0, 0), (7, 7), ("7", "7"), (None, None), (NAN, None)]
)
def test_a_number_of_pandas_is_a_whole_number(record, key, number, expected, tmp_path):
    (request,) = read_all(tmp_path, changed(record, (key,), number))
    assert request.case_id == expected
    assert type(request.case_id) is type(expected)


@pytest.mark.parametrize("number", [1.5, True, float("inf"), [1], {"a": 1}])
def test_what_is_no_number_of_a_case_is_refused(number, tmp_path):
    message = r"record 0 .*case_id must be a whole number or a string, got"
    with pytest.raises(ValueError, match=message):
        read_all(tmp_path, changed(OWN, ("case_id",), number))


@pytest.mark.parametrize("value", [None, NAN, 1998, 1998.0, True, ["Rome"], {"str": "Rome"}])
@pytest.mark.parametrize("form", RECORDS)
def test_a_subject_that_is_no_text_is_refused(form, value, tmp_path):
    path = {"counterfact": ("requested_rewrite", "subject")}.get(form, ("subject",))
    path = ("requested_rewrite", 0, "subject") if form == "mquake" else path
    wrong = changed(RECORDS[form], path, value)
    with pytest.raises(ValueError, match=r"some\.json, record 1 .*subject must be a string, got"):
        read_all(tmp_path, RECORDS[form], wrong)


@pytest.mark.parametrize(
    ("record", "path"),
    [
        (OWN, ("paraphrases",)),
        (OWN, ("generation_prompts",)),
        (OWN, ("neighbours",)),
        (OWN, ("portability",)),
        (COUNTERFACT, ("paraphrase_prompts",)),
        (COUNTERFACT, ("neighborhood_prompts",)),
        (COUNTERFACT, ("generation_prompts",)),
        (MQUAKE, ("questions",)),
        (ZSRE, ("answers",)),
        (KNOWEDIT, ("portability", "Reasoning")),
        (KNOWEDIT, ("locality", "Relation_Specificity")),
    ],
)
def test_a_text_or_number_in_place_of_a_list_is_refused(record, path, tmp_path):
    for value in ("BP lies in", 3, 1.5, True):
        with pytest.raises(ValueError, match=rf"record 0 .*{path[-1]} must be a list, got"):
            read_all(tmp_path, changed(record, path, value))


def test_a_blank_prompt_is_none(tmp_path):
    blank = {**COUNTERFACT, "paraphrase_prompts": ["", "BP lies in"], "neighborhood_prompts": [" "]}
    (request,) = read_all(tmp_path, blank)
    assert (request.paraphrases, request.neighbours) == (("BP lies in",), ())
    for record in (changed(ZSRE, ("rephrase",), " "), changed(FLAT, ("rephrase_prompt",), "")):
        assert read_all(tmp_path, record)[0].paraphrases == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rephrase": "a"}, ("a",)),
        ({"rephrase": ["a", None, "", NAN, "b"]}, ("a", "b")),
        ({"rephrase_prompt": "a"}, ("a",)),
        ({"rephrase_prompt": ["a", "b"]}, ("a", "b")),
        ({"rephrase": "a", "rephrase_prompt": "b"}, ("a",)),
        ({"rephrase": None, "rephrase_prompt": "b"}, ("b",)),
        ({"rephrase": [], "rephrase_prompt": "b"}, ("b",)),
        ({}, ()),
    ],
)
def test_paraphrases_of_knowedit_have_two_names(fields, expected, tmp_path):
    record = {key: value for key, value in KNOWEDIT.items() if key != "rephrase"}
    assert read_all(tmp_path, {**record, **fields})[0].paraphrases == expected


@pytest.mark.parametrize("missing", [None, NAN, [], [[]], [None], [[NAN]], "", " "])
def test_a_probe_of_knowedit_without_prompt_or_answer_is_left_out(missing, tmp_path):
    probes = [
        {"prompt": "The country is", "ground_truth": missing},
        {"prompt": missing, "ground_truth": "Italy"},
        {"prompt": "Its year is", "ground_truth": [None, 1998]},
    ]
    (request,) = read_all(tmp_path, changed(KNOWEDIT, ("portability",), {"Reasoning": probes}))
    assert request.portability == (PromptAnswer("Its year is", "1998"),)


@pytest.mark.parametrize("true", [None, NAN, [], [[]], [None]])
def test_a_fact_of_knowedit_may_have_no_true_answer(true, tmp_path):
    (request,) = read_all(tmp_path, {**KNOWEDIT, "ground_truth": true})
    assert request.target_true is None


@pytest.mark.parametrize("value", [True, 1.5, {"a": "b"}, [["Italy", True]], [3.5]])
@pytest.mark.parametrize("key", ["prompt", "ground_truth"])
def test_a_probe_of_knowedit_that_is_no_text_is_named(key, value, tmp_path):
    record = changed(KNOWEDIT, ("portability", "Reasoning", 0, key), value)
    message = rf"portability\.Reasoning\[0\]\.{key} must be a text or a list of texts, got"
    if value == [["Italy", True]]:  # the first name counts
        assert read_all(tmp_path, record)
        return
    with pytest.raises(ValueError, match=message):
        read_all(tmp_path, record)


@pytest.mark.parametrize("groups", [None, NAN, {}, {"Reasoning": None}, {"Reasoning": []}])
def test_knowedit_may_have_no_probes(groups, tmp_path):
    (request,) = read_all(tmp_path, {**KNOWEDIT, "portability": groups, "locality": groups})
    assert request.portability == request.neighbours == ()


@pytest.mark.parametrize("upper", [None, NAN])
def test_a_missing_text_is_read_under_its_other_name(upper, tmp_path):
    assert read_texts(write(tmp_path / "t.json", [{"Text": upper, "text": "a b"}])) == ["a b"]
    with pytest.raises(ValueError, match=r"t\.json, record 0 .*expected a string"):
        read_texts(write(tmp_path / "t.json", [{"Text": upper, "text": NAN}]))


def test_the_own_form_says_which_space_stands_before_answers(tmp_path):
    (request,) = read_all(tmp_path, {**OWN, "leading_space": "none"})
    assert request.leading_space == "none"
    with pytest.raises(ValueError, match=r"record 0 .*leading_space='no': expected one of"):
        read_all(tmp_path, {**OWN, "leading_space": "no"})


@pytest.mark.parametrize("seed", range(3))
def test_new_answers_of_known_facts_are_those_found_one_by_one(seed, tmp_path):
    """The next record of the relation that has another answer, looked for in the whole list."""
    import random

    draw = random.Random(seed)
    records = [
        {**KNOWN, "relation_id": draw.choice("ab"), "attribute": draw.choice(["x", "y", " x", ""])}
        for _ in range(40)
    ]
    expected = []
    for i, record in enumerate(records):
        relation, rest = record["relation_id"], records[i + 1 :] + records[:i]
        others = [r["attribute"].strip() for r in rest if r["relation_id"] == relation]
        known = record["attribute"].strip()
        new = next((other for other in others if other and other != known), None)
        expected += [new] if known and new else []
    assert [request.target_new for request in read_all(tmp_path, *records)] == expected


@pytest.mark.parametrize("read", [read_requests, read_texts])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "is no usable JSON: it is nested too deeply"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "is no usable JSON: it is nested too deeply"),
        ("1" * 5000, "is no usable JSON: Exceeds the limit"),
        ('{"text": "\\ud83d"}', "holds half a surrogate pair, which is no text"),
    ],
    ids=["lists", "objects", "digits", "surrogate"],
)
def test_what_json_cannot_hold_is_named_with_its_record(read, suffix, wrong, message, tmp_path):
    good = json.dumps(OWN | {"text": "a, [b"})
    lines = [good, good, wrong, good]
    content = "\n".join(lines) if suffix == "jsonl" else f" [ {', '.join(lines)}\n]"
    (tmp_path / f"some.{suffix}").write_text(content, encoding="utf-8")
    place = "line 3" if suffix == "jsonl" else r"record 2 \(counted from 0\)"
    with pytest.raises(ValueError, match=rf"some\.{suffix}, {place}, {message}"):
        read(str(tmp_path / f"some.{suffix}"))


@pytest.mark.parametrize("form", ["own", "counterfact-flat", "knowedit", "known", "zsre"])
def test_a_value_nested_less_deeply_than_json_allows_is_refused(form, tmp_path):
    """Its parser reads what this program's own functions could not go through."""
    depth = 900
    text = json.dumps({**RECORDS[form], "subject": 0}).replace(
        '"subject": 0', f'"subject": {"[" * depth}{"]" * depth}'
    )
    (tmp_path / "some.json").write_text(f"[{text}]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"some\.json"):
        read_requests(str(tmp_path / "some.json"))
