"""Facts and texts in tables, and EasyEdit's arguments as a file."""

import json
import typing

import pandas as pd
import pytest
from record_examples import COUNTERFACT, EXAMPLES, FLAT, OWN

from jaxedit.datasets import form_module, form_names, read_requests, read_texts
from jaxedit.datasets._files import NESTED
from jaxedit.edits.request import PromptAnswer, Request

CALL = {
    "prompts": ["Rome is in", "Who leads Peru?"],
    "subject": ["Rome", "Peru"],
    "target_new": ["Oslo", "Ada"],
    "ground_truth": ["Italy", None],
    "rephrase_prompts": ["Rome lies in", None],
    "locality_inputs": {
        "neighborhood": {"prompt": ["Bergen is in", None], "ground_truth": ["Norway", None]}
    },
    "portability_inputs": {
        "one_hop": {
            "prompt": [["Rome's king is", "Rome's sea is"], None],
            "ground_truth": [["Harald", "the North Sea"], None],
        }
    },
}


def write_table(path, records):
    """Write records by pandas; what is no text or number as JSON in its cell, as people do."""
    table = pd.DataFrame(records)
    if path.suffix == ".parquet":
        table.to_parquet(path)
        return str(path)
    cells = table.map(lambda cell: json.dumps(cell) if isinstance(cell, list | dict) else cell)
    cells.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("form", ["own", "counterfact", "counterfact-flat", "zsre", "wikibigedit"])
def test_a_table_is_read_as_its_records(form, suffix, tmp_path):
    record, expected = EXAMPLES[form]
    if form in ("own", "counterfact") and suffix != ".parquet":
        numbers = {"case_id": str(expected.case_id)}  # a cell is a text
        expected = Request(**{**vars(expected), **numbers})
    source = write_table(tmp_path / f"records{suffix}", [record, record])
    found = read_requests(source)
    assert found.form == form
    if form == "counterfact-flat" and suffix != ".parquet":
        expected = Request(**{**vars(expected), "case_id": "3"})
    assert found.requests == [expected, expected]


def test_what_a_table_leaves_empty_is_absent(tmp_path):
    bare = {key: OWN[key] for key in ("prompt", "subject", "target_new")}
    for suffix in (".csv", ".parquet"):
        source = write_table(tmp_path / f"facts{suffix}", [OWN, bare])
        assert read_requests(source).requests[1] == Request(**bare)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_texts_of_a_table_keep_their_spaces(suffix, tmp_path):
    source = write_table(tmp_path / f"texts{suffix}", [{"Text": " one, and"}, {"Text": '"two"\nx'}])
    assert read_texts(source) == [" one, and", '"two"\nx']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,subject\nx\n", r"a.csv, line 2: 1 cells under 2 names; .*quotation"),
        ("a.csv", b'prompt,subject\n"x,y\n', r"a.csv, line 2: unexpected end of data"),
        ("a.csv", b"prompt,paraphrases\nx,[1\n", r"a.csv, line 2, column paraphrases is not JSON"),
        ("a.csv", b"prompt,subject,prompt\nx,y,z\n", r"a.csv has more than one column 'prompt'"),
        ("a.csv", b"", r"a.csv is empty"),
        ("a.tsv", b"\xff\xfe", r"a.tsv is not UTF-8 text"),
        ("a.parquet", b"PAR1", r"a.parquet is no Parquet file"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_requests(str(tmp_path / name))


def test_only_what_may_be_a_list_is_read_as_one(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text(
        "prompt, subject,target_new,paraphrases,target_true\n"
        '[Wiki] {} is in,[Untitled],Rome,"[""It is in""]",\n'
    )
    (request,) = read_requests(str(path)).requests
    assert (request.prompt, request.subject) == ("[Wiki] {} is in", "[Untitled]")
    assert (request.paraphrases, request.target_true) == (("It is in",), None)
    (tmp_path / "texts.csv").write_text("text\n[edit] some text\n[1]\n")
    assert read_texts(str(tmp_path / "texts.csv")) == ["[edit] some text", "[1]"]


@pytest.mark.parametrize("name", ["facts.csv", "facts.tsv", "facts.parquet", "facts.json"])
def test_what_pandas_adds_is_no_field_of_a_fact(name, tmp_path):
    """Row numbers, saved once and again after reading, and case numbers of a column with gaps."""
    bare = {key: OWN[key] for key in ("prompt", "subject", "target_new")}
    pd.DataFrame([{**bare, "case_id": 3}, bare]).to_csv(tmp_path / "once.csv")
    table, path = pd.read_csv(tmp_path / "once.csv", index_col=None), tmp_path / name
    table.index = [5, 7]
    save = {
        ".csv": table.to_csv,
        ".tsv": lambda path: table.to_csv(path, sep="\t"),
        ".parquet": table.to_parquet,
        ".json": lambda path: table.to_json(path, orient="records"),
    }
    save[path.suffix](path)
    found = read_requests(str(path))
    assert found.form == "own"
    assert [str(fact.case_id) for fact in found.requests] == ["3", "None"]


@pytest.mark.parametrize("name", ["", "Unnamed: 3"])
def test_a_column_without_a_name_that_holds_texts_is_not_passed_over(name, tmp_path):
    (tmp_path / "facts.csv").write_text(
        f"prompt,subject,target_new,{name}\n{{}} is in,BP,Rome,Oslo"
    )
    with pytest.raises(ValueError, match=f"unknown key '{name}'"):
        read_requests(str(tmp_path / "facts.csv"))


def test_the_names_of_the_columns_tell_the_form(tmp_path):
    """A cell is empty where a record of a JSON file has null, in the first row as in others."""
    head, full = "prompt,subject,target_new,ground_truth", "Paris is in,Paris,Rome,France"
    for rows in ((full, "Oslo is in,Oslo,Rome,"), ("Oslo is in,Oslo,Rome,", full)):
        (tmp_path / "facts.csv").write_text("\n".join([head, *rows]))
        found = read_requests(str(tmp_path / "facts.csv"))
        assert (found.form, found.n_skipped) == ("counterfact-flat", 0)
        assert {each.subject: each.target_true for each in found.requests} == {
            "Paris": "France",
            "Oslo": None,
        }


def test_every_field_that_may_be_a_list_is_known():
    def is_nested(expected) -> bool:
        if isinstance(expected, dict | list):
            return True
        return bool({list, dict} & {expected, *typing.get_args(expected)})

    fields = {
        key.removesuffix("?")
        for name in form_names()
        for key, expected in form_module(name).FIELDS.items()
        if is_nested(expected)
    }
    assert fields <= NESTED


def test_easyedits_arguments_of_one_edit_and_neighbours_without_a_group(tmp_path):
    call = {"prompts": "Rome is in", "subject": "Rome", "target_new": "Norway"}
    call |= {"locality_prompts": ["Bergen is in"], "locality_ground_truth": ["Norway"]}
    path = tmp_path / "call.json"
    path.write_text(json.dumps(call))
    assert read_requests(str(path)).requests == [
        Request(
            prompt="{} is in",
            subject="Rome",
            target_new="Norway",
            neighbours=(PromptAnswer("Bergen is in", "Norway"),),
        )
    ]
    path.write_text(json.dumps({"prompts": ["Rome is in"], "target_new": ["Norway"]}))
    with pytest.raises(ValueError, match=r"call.json has no 'subject'; the arguments are prompts"):
        read_requests(str(path))


def test_easyedits_arguments_are_its_requests(tmp_path):
    path = tmp_path / "call.json"
    path.write_text(json.dumps(CALL))
    first, second = read_requests(str(path)).requests
    assert first == Request(
        prompt="{} is in",
        subject="Rome",
        target_new="Oslo",
        target_true="Italy",
        paraphrases=("Rome lies in",),
        neighbours=(PromptAnswer("Bergen is in", "Norway"),),
        portability=(
            PromptAnswer("Rome's king is", "Harald"),
            PromptAnswer("Rome's sea is", "the North Sea"),
        ),
    )
    assert second == Request(prompt="Who leads {}?", subject="Peru", target_new="Ada")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": ["Rome"]}, r"subject must be a list of 2 entries, as many as prompts; got"),
        ({"prompts": "Rome is in"}, r"subject must be a list of 1 entries"),
        ({"rephrase_prompt": []}, r"has the unknown argument 'rephrase_prompt'; the arguments are"),
        ({"locality_prompts": ["x", "y"]}, r"locality_prompts and locality_ground_truth go"),
        ({"locality_inputs": {"a": ["x"]}}, r"locality_inputs must be an object of groups"),
        (
            {"portability_inputs": {"a": {"prompt": [["x", "y"], "z"], "ground_truth": ["1", ""]}}},
            r"portability_inputs.a has the prompts .* expected as many of both",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message, tmp_path):
    path = tmp_path / "call.json"
    path.write_text(json.dumps(CALL | change))
    with pytest.raises(ValueError, match=message):
        read_requests(str(path))


def test_a_subject_may_be_written_out_in_the_prompt(tmp_path):
    written = {**OWN, "prompt": "The Eiffel Tower is located in the city of"}
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([written]))
    assert read_requests(str(path)).requests == [EXAMPLES["own"][1]]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("Rome, Rome is in", r"stands 2 times in the prompt .*: write \{\} in the place that is"),
        ("Romeo is in", r"'Rome' does not occur in the prompt 'Romeo is in'"),
    ],
)
def test_a_prompt_without_a_clear_subject_is_refused(prompt, message, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([{"prompt": prompt, "subject": "Rome", "target_new": "Oslo"}]))
    with pytest.raises(ValueError, match=message):
        read_requests(str(path))


def test_records_that_two_forms_know_are_of_the_one_with_a_true_answer(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([FLAT]))
    assert read_requests(str(path)).form == "counterfact-flat"
    path.write_text(json.dumps([COUNTERFACT]))
    assert read_requests(str(path)).form == "counterfact"
