"""Every form of record, on hand-written and on real records, and what wrong records are told."""

import json

import pytest

from jaxedit.datasets import form_module, form_names, read_requests
from jaxedit.edits.request import PromptAnswer, Request

OWN = {
    "prompt": "{} is located in the city of",
    "subject": "The Eiffel Tower",
    "target_new": "Rome",
    "target_true": "Paris",
    "paraphrases": ["To see The Eiffel Tower one travels to"],
    "neighbours": [{"prompt": "The Louvre is located in the city of", "answer": "Paris"}],
    "generation_prompts": ["The Eiffel Tower is"],
    "case_id": "tower",
    "relation": "P131",
    "portability": [{"prompt": "The Eiffel Tower is in the country of", "answer": "Italy"}],
    "kind": "place",
}
COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux spoke the language", "Danielle Darrieux, a native"],
    "neighborhood_prompts": [
        "Michel Rocard is a native speaker of",
        "The mother tongue of Jean is",
    ],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
FLAT = {
    "case_id": 3,
    "prompt": "In Rome, the Rome marathon is run in",
    "target_new": "Oslo",
    "subject": "Rome",
    "ground_truth": "Italy",
    "rephrase_prompt": "Rome lies in",
    "locality_prompt": "Bergen lies in",
    "locality_ground_truth": "Norway",
}
ZSRE = {
    "subject": "WEFS",
    "src": "When was WEFS established?",
    "pred": "1998",
    "rephrase": "When has WEFS been established?",
    "alt": "1997",
    "answers": ["1987", "1988"],
    "loc": "nq question: who voiced gaston",
    "loc_ans": "Richard White",
    "cond": "1998 >> 1997 || When was WEFS established?",
}
KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Oslo",
    "ground_truth": ["Berlin", "Berlin, Germany"],
    "rephrase": "Leo Arons died in",
    "portability": {
        "Reasoning": [
            {
                "prompt": "Leo Arons died in the country of",
                "ground_truth": [["Norway", "Kingdom of Norway"]],
            }
        ],
        "Subject_Aliasing": [
            {"prompt": "The place of death of Martin Leo Arons is", "ground_truth": "Oslo"}
        ],
        "Logical_Generalization": [{"prompt": "Nobody knows", "ground_truth": []}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": ["Leo Arons was born in"], "ground_truth": [["Berlin"]]}
        ]
    },
}
KNOWN = {
    "known_id": 4,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Croatia", "id": "Q224"},
            "target_true": {"str": "United States of America", "id": "Q30"},
            "subject": "Ellie Kemper",
            "question": "What is the country of citizenship of Ellie Kemper?",
        }
    ],
    "questions": ["Who is the head of state of the country of which Ellie Kemper is a citizen?"],
    "answer": "Joe Biden",
    "new_answer": "Kolinda Grabar",
}
EXAMPLES = {  # form -> a record, and what it says
    "own": (
        OWN,
        Request(
            prompt="{} is located in the city of",
            subject="The Eiffel Tower",
            target_new="Rome",
            target_true="Paris",
            paraphrases=("To see The Eiffel Tower one travels to",),
            neighbours=(PromptAnswer("The Louvre is located in the city of", "Paris"),),
            generation_prompts=("The Eiffel Tower is",),
            case_id="tower",
            relation="P131",
            portability=(PromptAnswer("The Eiffel Tower is in the country of", "Italy"),),
        ),
    ),
    "counterfact": (
        COUNTERFACT,
        Request(
            prompt="The mother tongue of {} is",
            subject="Danielle Darrieux",
            target_new="English",
            target_true="French",
            paraphrases=("Danielle Darrieux spoke the language", "Danielle Darrieux, a native"),
            neighbours=(
                PromptAnswer("Michel Rocard is a native speaker of", "French"),
                PromptAnswer("The mother tongue of Jean is", "French"),
            ),
            generation_prompts=("Danielle Darrieux's mother tongue is",),
            case_id=7,
            relation="P103",
            target_id="Q1860",
        ),
    ),
    "counterfact-flat": (
        FLAT,
        Request(
            prompt="In {}, the Rome marathon is run in",
            subject="Rome",
            target_new="Oslo",
            target_true="Italy",
            paraphrases=("Rome lies in",),
            neighbours=(PromptAnswer("Bergen lies in", "Norway"),),
            case_id=3,
        ),
    ),
    "knowedit": (
        KNOWEDIT,
        Request(
            prompt="The place of death of {} is",
            subject="Leo Arons",
            target_new="Oslo",
            target_true="Berlin",
            paraphrases=("Leo Arons died in",),
            neighbours=(PromptAnswer("Leo Arons was born in", "Berlin"),),
            portability=(
                PromptAnswer("Leo Arons died in the country of", "Norway"),
                PromptAnswer("The place of death of Martin Leo Arons is", "Oslo"),
            ),
        ),
    ),
    "mquake": (
        MQUAKE,
        Request(
            prompt="{} is a citizen of",
            subject="Ellie Kemper",
            target_new="Croatia",
            target_true="United States of America",
            paraphrases=("What is the country of citizenship of Ellie Kemper?",),
            case_id=1,
            relation="P27",
            portability=(
                PromptAnswer(
                    "Who is the head of state of the country of which Ellie Kemper is a citizen?",
                    "Kolinda Grabar",
                ),
            ),
        ),
    ),
    "zsre": (
        ZSRE,
        Request(
            prompt="When was {} established?",
            subject="WEFS",
            target_new="1997",
            target_true="1987",
            paraphrases=("When has WEFS been established?",),
            neighbours=(PromptAnswer("who voiced gaston?", "Richard White"),),
        ),
    ),
}
ANSWER_PATHS = {  # form -> where its answers are, each of which must not be empty
    "own": [("target_new",), ("target_true",), ("neighbours", 0, "answer")],
    "counterfact": [
        ("requested_rewrite", "target_new", "str"),
        ("requested_rewrite", "target_true", "str"),
    ],
    "counterfact-flat": [("target_new",), ("ground_truth",), ("locality_ground_truth",)],
    "knowedit": [("target_new",), ("ground_truth", 0)],
    "mquake": [
        ("requested_rewrite", 0, "target_new", "str"),
        ("requested_rewrite", 0, "target_true", "str"),
    ],
    "zsre": [("alt",), ("answers", 0), ("loc_ans",)],
}
TOGETHER = {"known"}  # whose records say only together what to write


def changed(record, path, value):
    """A deep copy of the record with the value at the path replaced."""
    copy = json.loads(json.dumps(record))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def write(path, records):
    if path.suffix.lower() == ".jsonl":
        path.write_text(
            "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n\n",
            encoding="utf-8",
        )
    else:
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_every_form_has_an_example():
    assert form_names() == sorted([*EXAMPLES, *TOGETHER]) == sorted([*ANSWER_PATHS, *TOGETHER])
    for name in form_names():
        form = form_module(name)
        assert isinstance(form.KEYS, frozenset)
        assert set(form.FIELDS) >= form.KEYS  # so all of KEYS are required


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL"])
@pytest.mark.parametrize("form", EXAMPLES)
def test_a_record_becomes_its_request(form, suffix, tmp_path):
    record, expected = EXAMPLES[form]
    source = write(tmp_path / f"records{suffix}", [record, record])
    assert read_requests(source) == ([expected, expected], 0, form)


@pytest.mark.parametrize("form", EXAMPLES)
def test_only_the_keys_that_tell_the_form_and_required_fields_are_needed(form, tmp_path):
    record, expected = EXAMPLES[form]
    optional = {key.removesuffix("?") for key in form_module(form).FIELDS if key.endswith("?")}
    bare = {key: value for key, value in record.items() if key not in optional}
    null = {**record, **dict.fromkeys(optional)}
    for source in (write(tmp_path / "bare.json", [bare]), write(tmp_path / "null.json", [null])):
        (request,), n_skipped, found = read_requests(source)
        assert (n_skipped, found) == (0, form)
        assert (request.prompt, request.subject, request.target_new) == (
            expected.prompt,
            expected.subject,
            expected.target_new,
        )


@pytest.mark.parametrize("form", EXAMPLES)
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_answer_is_skipped_and_counted(form, empty, tmp_path):
    record, expected = EXAMPLES[form]
    for path in ANSWER_PATHS[form]:
        source = write(tmp_path / "records.json", [record, changed(record, path, empty), record])
        assert read_requests(source) == ([expected, expected], 1, form), path


@pytest.mark.parametrize(
    ("form", "key"), [("counterfact-flat", "subject"), ("zsre", "subject"), ("knowedit", "subject")]
)
@pytest.mark.parametrize("subject", ["Nobody", "rOME", "wefs"])
def test_a_subject_that_does_not_occur_exactly_is_skipped_and_counted(form, key, subject, tmp_path):
    record, expected = EXAMPLES[form]
    source = write(tmp_path / "records.json", [record, {**record, key: subject}])
    assert read_requests(source) == ([expected], 1, form)


def test_a_known_fact_takes_the_next_answer_of_its_relation(tmp_path):
    others = [
        ("Lake Vostok", "Antarctica"),
        ("Peru", "South America"),
        ("Nile", ""),
        ("Kenya", "Africa"),
    ]
    records = [
        KNOWN,
        *(
            {**KNOWN, "known_id": i, "subject": s, "attribute": a, "prompt": f"{s} lies in"}
            for i, (s, a) in enumerate(others)
        ),
    ]
    alone = {**KNOWN, "known_id": 9, "relation_id": "P31"}
    source = write(tmp_path / "known.json", [*records, alone, {**KNOWN, "subject": "Nobody"}])
    found = read_requests(source)
    assert (found.form, found.n_skipped) == ("known", 3)
    assert [(r.subject, r.target_true, r.target_new) for r in found.requests] == [
        ("Vinson Massif", "Antarctica", "South America"),
        ("Lake Vostok", "Antarctica", "South America"),
        ("Peru", "South America", "Africa"),
        ("Kenya", "Africa", "Antarctica"),
    ]
    assert found.requests[0] == Request(
        "{} is located in the continent of",
        "Vinson Massif",
        "South America",
        "Antarctica",
        case_id=4,
        relation="P30",
    )
    with pytest.raises(ValueError, match=r"known\.json, record 1 .*attribute must be a string"):
        read_requests(write(tmp_path / "known.json", [KNOWN, {**KNOWN, "attribute": 3}]))


def test_rewrites_of_one_record_are_requests_and_the_last_asks_the_questions(tmp_path):
    second = {
        **MQUAKE["requested_rewrite"][0],
        "prompt": "The name of the current head of state in {} is",
        "subject": "Croatia",
    }
    both = {**MQUAKE, "requested_rewrite": [*MQUAKE["requested_rewrite"], second]}
    first, last, single = read_requests(write(tmp_path / "mquake.json", [both, MQUAKE])).requests
    assert (first.portability, [probe.answer for probe in last.portability]) == (
        (),
        ["Kolinda Grabar"],
    )
    assert single == EXAMPLES["mquake"][1]


def test_a_probe_that_is_none_is_named(tmp_path):
    wrong = {**KNOWEDIT, "locality": {"Forgetfulness": [{"question": "?"}]}}
    with pytest.raises(
        ValueError, match=r"record 0 .*locality\.Forgetfulness\[0\] must be an object with a prompt"
    ):
        read_requests(write(tmp_path / "knowedit.json", [wrong]))


def test_a_zsre_record_without_answers_is_skipped(tmp_path):
    source = write(tmp_path / "records.json", [ZSRE, {**ZSRE, "answers": []}])
    assert read_requests(source).n_skipped == 1


def test_a_question_mark_is_not_doubled(tmp_path):
    source = write(tmp_path / "records.json", [{**ZSRE, "loc": "nq question: who voiced gaston?"}])
    assert read_requests(source).requests[0].neighbours == (
        PromptAnswer("who voiced gaston?", "Richard White"),
    )


@pytest.mark.parametrize("form", EXAMPLES)
def test_a_wrong_or_missing_field_is_named_with_file_and_record(form, tmp_path):
    record, _ = EXAMPLES[form]
    for field in form_module(form).FIELDS:
        name = field.removesuffix("?")
        source = write(tmp_path / "some.json", [record, changed(record, (name,), 1.5)])
        with pytest.raises(
            ValueError, match=rf"some\.json, record 1 .*{form}\): {name} must be .*got 1\.5"
        ):
            read_requests(source)
        if not field.endswith("?"):
            source = write(
                tmp_path / "some.json", [record, {k: v for k, v in record.items() if k != name}]
            )
            with pytest.raises(
                ValueError, match=rf"some\.json, record 1 .*the record has no '{name}'"
            ):
                read_requests(source)
    source = write(tmp_path / "some.json", [record, "text"])
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
        (changed(OWN, ("prompt",), "The Eiffel Tower is in"), "has 0 places"),
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
    ],
)
def test_a_wrong_record_is_told_what_is_wrong(record, message, tmp_path):
    with pytest.raises(ValueError, match=rf"some\.json, record 0 .*{message}"):
        read_requests(write(tmp_path / "some.json", [record]))


def test_an_unknown_form_is_told_the_known_ones(tmp_path):
    with pytest.raises(
        ValueError, match=r"some\.json: the first record has the keys answer, question"
    ) as caught:
        read_requests(write(tmp_path / "some.json", [{"question": "who?", "answer": "me"}]))
    for name in form_names():
        assert f"{name} ({', '.join(sorted(form_module(name).KEYS))})" in str(caught.value)
    with pytest.raises(ValueError, match='the first record is "who"'):
        read_requests(write(tmp_path / "some.json", ["who"]))


def test_a_file_without_anything_to_edit_raises(tmp_path):
    with pytest.raises(
        ValueError, match=r"some\.json holds nothing to edit: in all 2 records \(form own\)"
    ):
        read_requests(write(tmp_path / "some.json", [{**OWN, "target_new": ""}] * 2))


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
    assert [request.prompt_text for request in found.requests] == [
        record["prompt"] for record in records
    ]
    assert [request.case_id for request in found.requests] == [
        record["case_id"] for record in records
    ]


def test_all_of_zsre_is_read(shared):
    path = shared / "data/zsre/zsre_mend_train-1k.json"
    found = read_requests(str(path))
    assert (len(found.requests), found.n_skipped, found.form) == (
        998,
        2,
        "zsre",
    )  # two records have no `alt`
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
    assert [request.prompt_text for request in found.requests] == [
        record["src"] for record in records
    ]
