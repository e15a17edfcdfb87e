"""Texts from every kind of file, and what is said of files that cannot be read."""

import json

import pytest

from jaxedit.datasets import read_corpus, read_requests, read_texts

TEXTS = ["  two spaces in front", "Kashmir – \u2028 and a line separator ", "x"]


def write(path, records):
    if path.suffix.lower() == ".jsonl":
        path.write_text(
            "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n\n",
            encoding="utf-8",
        )
    else:
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_texts_are_verbatim_in_every_form(tmp_path):
    assert read_texts(write(tmp_path / "plain.json", TEXTS)) == TEXTS
    assert (
        read_texts(
            write(tmp_path / "me-ppl.json", [{"Corpus": "C4", "Text": text} for text in TEXTS])
        )
        == TEXTS
    )
    assert read_texts(write(tmp_path / "plain.jsonl", TEXTS)) == TEXTS
    assert (
        read_texts(write(tmp_path / "records.jsonl", [{"text": text} for text in TEXTS])) == TEXTS
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("\n" + "\n \n\n".join(TEXTS) + "\n", encoding="utf-8")
    assert read_texts(str(lines)) == TEXTS


@pytest.mark.parametrize("record", [3, None, {"Corpus": "C4"}, {"text": 3}])
def test_a_wrong_text_is_named_with_file_and_record(record, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"some\.json, record 1 .*expected a string, or an object with a string under \"Text\"",
    ):
        read_texts(write(tmp_path / "some.json", ["good", record]))


def test_a_corpus_is_a_file_or_a_directory_of_them(tmp_path):
    write(tmp_path / "b.json", TEXTS)
    (tmp_path / "a.txt").write_text("first\n\nsecond\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a text")
    assert read_corpus(str(tmp_path)) == ["first", "second", *TEXTS]
    assert read_corpus(str(tmp_path / "b.json")) == TEXTS
    write(tmp_path / "wrong.json", {"no": "list"})
    with pytest.raises(ValueError, match=r"wrong\.json holds .*expected a \.json list of texts"):
        read_corpus(str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none holds no \.txt, \.json or \.jsonl file"):
        read_corpus(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"there is no file .*absent"):
        read_corpus(str(tmp_path / "absent"))


def test_a_corpus_of_the_datasets_library_is_streamed(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, **options):
        asked.append((name, config, options))
        return datasets.Dataset.from_dict(
            {"text": ["one", " ", "two", "three"]}
        ).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_corpus("datasets:some/name") == ["one", "two", "three"]
    assert read_corpus("datasets:some/name,20231101.en,validation", 3) == ["one", "two"]
    assert asked == [
        ("some/name", None, {"split": "train", "streaming": True}),
        ("some/name", "20231101.en", {"split": "validation", "streaming": True}),
    ]


def test_a_corpus_that_cannot_be_had_says_what_to_do(monkeypatch):
    import datasets

    for error, said in (
        (ConnectionError("no route\nto host"), "no route to host"),
        (TimeoutError(), "TimeoutError: "),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(
            ValueError,
            match=rf"'some/name' could not be had .*{said}.*without a network give a \.json",
        ):
            read_corpus("datasets:some/name")


def test_an_empty_text_file_raises(tmp_path):
    (tmp_path / "some.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"some\.txt holds no texts; expected one a line"):
        read_texts(str(tmp_path / "some.txt"))


@pytest.mark.parametrize("read", [read_requests, read_texts])
def test_a_file_that_cannot_be_read_is_named(read, tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no file .*absent\.json; expected 'builtin', or the path"
    ):
        read(str(tmp_path / "absent.json"))
    broken = tmp_path / "broken.json"
    broken.write_text('[\n{"prompt": }]')
    with pytest.raises(
        ValueError, match=r"broken\.json is not JSON: .* at line 2, column 12; expected a \.json"
    ):
        read(str(broken))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n\n{"text": }\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl is not JSON: .* at line 3, column 10"):
        read(str(broken))
    (tmp_path / "latin.json").write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.json is not UTF-8"):
        read(str(tmp_path / "latin.json"))
    with pytest.raises(ValueError, match=r"empty\.json is empty; expected at least one record"):
        read(write(tmp_path / "empty.json", []))
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        read(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(ValueError, match=r"object\.json holds \{.*; expected a \.json"):
        read(write(tmp_path / "object.json", {"text": "a"}))


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
