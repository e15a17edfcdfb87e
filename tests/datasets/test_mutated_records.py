"""Whatever is changed in a record: the readers read it, or say what is wrong with which file."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_examples import EXAMPLES, KNOWN

from jaxedit import Request
from jaxedit.datasets import form_module, form_names, read_requests, read_texts

RECORDS = {form: record for form, (record, _) in EXAMPLES.items()} | {"known": KNOWN}
BOUNDED = settings(
    max_examples=50,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

UNUSUAL = ["", " ", "{}", "{} is", "None", "nan", "\x00", "\ud83d", "東京", "\u202e", "\U0001f469"]
TEXTS = st.sampled_from(UNUSUAL) | st.text(max_size=8)
NUMBERS = st.integers() | st.floats() | st.sampled_from([1.0, 10**30])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["str", "prompt"]), inner)
    ),
    max_leaves=4,
)
MISSING = object()


def places(value, path=()):
    """Every place in a record, the record itself too."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def replaced(record, path, value):
    if not path:
        return value
    copy = json.loads(json.dumps(record))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


def attempt(read, path):
    """Read a file; return what it holds, or the error: anything but a ValueError is a failure."""
    try:
        return read(str(path))
    except ValueError as error:
        return error


@pytest.mark.parametrize("form", form_names())
@BOUNDED
@given(data=st.data())
def test_a_mutated_record_is_read_or_refused_with_its_file(form, data, tmp_path):
    record = RECORDS[form]
    wrong = record
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from([*places(wrong)]))
        wrong = replaced(wrong, at, data.draw(VALUES | st.just(MISSING) if at else VALUES))
    path = tmp_path / "some.json"
    path.write_text(json.dumps([record, wrong, record]), encoding="utf-8")
    found = attempt(read_requests, path)
    if isinstance(found, ValueError):
        assert str(found).startswith(str(path))
        return
    assert found.form == form
    # Texts are those of the file, none is made up.
    content = json.dumps([record, wrong], ensure_ascii=False)
    for request in found.requests:
        assert isinstance(request, Request)
        for text in (request.subject, *request.paraphrases, *request.generation_prompts):
            assert json.dumps(text, ensure_ascii=False)[1:-1] in content
        assert type(request.case_id) in (int, str, type(None))


@pytest.mark.parametrize("read", [read_requests, read_texts])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "txt"])
@BOUNDED
@given(data=st.data())
def test_mutated_bytes_are_read_or_refused_with_their_file(read, suffix, data, tmp_path):
    """Some bytes of the file are others, are lost, or are there that were not."""
    records = [RECORDS["own"]] if read is read_requests else [{"text": "Ann lives in Rome"}, "Bob"]
    lines = [json.dumps(record) for record in records]
    text = "\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]"
    content = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        signs = st.sampled_from([bytes([sign]) for sign in b'[]{}",:\\' + string.digits.encode()])
        content[at : at + data.draw(st.integers(0, 5))] = data.draw(signs | st.binary(max_size=3))
    path = tmp_path / f"some.{suffix}"
    path.write_bytes(bytes(content))
    found = attempt(read, path)
    assert str(found).startswith(str(path)) if isinstance(found, ValueError) else found


def test_every_form_is_mutated():
    assert sorted(RECORDS) == form_names()
    assert all(set(record) >= form_module(form).KEYS for form, record in RECORDS.items())
