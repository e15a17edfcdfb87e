"""Texts from every kind of file, and what is said of files that cannot be read."""

import pytest
from record_examples import write

from jaxedit.datasets import read_corpus, read_requests, read_texts

TEXTS = ["  two spaces in front", "Kashmir – \u2028 and a line separator ", "x"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("plain.json", None),
        ("plain.jsonl", None),
        ("me-ppl.json", "Text"),
        ("records.jsonl", "text"),
    ],
)
def test_texts_are_verbatim(name, key, tmp_path):
    records = TEXTS if key is None else [{"Corpus": "C4", key: text} for text in TEXTS]
    assert read_texts(write(tmp_path / name, records)) == TEXTS


def test_lines_are_verbatim_and_empty_ones_dropped(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n" + "\n \n\n".join(TEXTS) + "\n", encoding="utf-8")
    assert read_texts(str(path)) == TEXTS


@pytest.mark.parametrize("record", [3, None, {"Corpus": "C4"}, {"text": 3}])
def test_a_wrong_text_is_named_with_file_and_record(record, tmp_path):
    source = write(tmp_path / "some.json", ["good", record])
    expected = r'expected a string, or an object with a string under "Text"'
    with pytest.raises(ValueError, match=rf"some\.json, record 1 .*{expected}"):
        read_texts(source)


def test_a_corpus_is_a_file_or_a_directory_of_them(tmp_path):
    write(tmp_path / "b.json", TEXTS)
    (tmp_path / "a.txt").write_text("first\n\nsecond\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a text")
    assert read_corpus(str(tmp_path)) == ["first", "second", *TEXTS]
    assert read_corpus(str(tmp_path / "b.json")) == TEXTS


def test_a_wrong_file_of_a_corpus_is_named(tmp_path):
    write(tmp_path / "b.json", TEXTS)
    write(tmp_path / "wrong.json", {"no": "list"})
    with pytest.raises(ValueError, match=r"wrong\.json holds .*expected a \.json list of texts"):
        read_corpus(str(tmp_path))


def test_a_corpus_without_files_is_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none holds no \.txt, \.json, \.jsonl, .* file"):
        read_corpus(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"there is no file .*absent"):
        read_corpus(str(tmp_path / "absent"))


def test_a_corpus_of_the_datasets_library_is_streamed(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, **options):
        asked.append((name, config, options))
        rows = {"text": ["one", " ", "two", "three"]}
        return datasets.Dataset.from_dict(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_corpus("datasets:some/name") == ["one", "two", "three"]
    assert read_corpus("datasets:some/name,20231101.en,validation", 3) == ["one", "two"]
    assert asked == [
        ("some/name", None, {"split": "train", "streaming": True}),
        ("some/name", "20231101.en", {"split": "validation", "streaming": True}),
    ]


@pytest.mark.parametrize("row", [{"title": "two"}, {"text": None}, {"text": b"two"}])
def test_a_row_without_a_text_is_named_with_data_set_and_row(row, monkeypatch):
    import datasets

    rows = [{"text": "one"}, row]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    expected = r'expected a string, or an object with a string under "Text"'
    with pytest.raises(ValueError, match=rf"datasets:some/name, record 1 .*{expected}"):
        read_corpus("datasets:some/name")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no route\nto host"), "no route to host"),
        (TimeoutError(), "TimeoutError: "),
    ],
)
def test_a_corpus_that_cannot_be_had_says_what_to_do(error, said, monkeypatch):
    import datasets

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = rf"'some/name' could not be had .*{said}.*without a network give a \.json"
    with pytest.raises(ValueError, match=message):
        read_corpus("datasets:some/name")


def test_a_text_file_of_empty_lines_is_refused(tmp_path):
    (tmp_path / "some.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"some\.txt holds no texts; expected one a line"):
        read_texts(str(tmp_path / "some.txt"))


@pytest.mark.parametrize("read", [read_requests, read_texts])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "broken.json",
            b'[\n{"prompt": }]',
            "is not JSON: .* at line 2, column 12; expected a",
        ),
        ("broken.jsonl", b'{"text": 1}\n\n{"text": }\n', "is not JSON: .* at line 3, column 10"),
        ("latin.json", '["é"]'.encode("latin-1"), "is not UTF-8"),
        ("empty.json", b"[]", "is empty; expected at least one record"),
        ("empty.jsonl", b"\n\n", "is empty; expected at least one record"),
        ("object.json", b'{"text": "a"}', r"holds \{.*; expected a .json"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(read, name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        read(str(tmp_path / name))


@pytest.mark.parametrize("read", [read_requests, read_texts])
def test_an_absent_file_is_named_with_what_is_expected(read, tmp_path):
    message = (
        r"there is no file .*absent\.json; expected 'builtin', a public data set .*, or the path"
    )
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path / "absent.json"))
