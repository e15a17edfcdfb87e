"""Records and texts out of a file's content, by what its name ends in."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from jaxedit.datasets._easyedit import is_call, records_of_call
from jaxedit.datasets._fields import is_missing
from jaxedit.downloads import is_url
from jaxedit.files import parse_json, shorten_json

DELIMITERS = {".csv": ",", ".tsv": "\t"}
MOST_LETTERS = 1 << 30  # of a cell; csv's own limit is less than a long article
# pandas' own column, its row numbers: in Parquet files, in tables, and in tables read and written
# again.
INDEX = re.compile(r"__index_level_\d+__|(Unnamed: \d+(\.\d+)?)?")
# Fields that hold a case's number in its data set, and how pandas writes one in a column with gaps.
CASE_NUMBERS = frozenset({"case_id", "known_id"})
WHOLE_NUMBER = re.compile(r"(\d+)\.0")
# Fields of the forms that may be lists or objects.
NESTED = frozenset(
    {
        "paraphrases",
        "neighbours",
        "portability",
        "generation_prompts",
        "requested_rewrite",
        "paraphrase_prompts",
        "neighborhood_prompts",
        "attribute_prompts",
        "answers",
        "ground_truth",
        "rephrase",
        "rephrase_prompt",
        "locality",
        "questions",
    }
)
SUFFIXES = (".txt", ".json", ".jsonl", *DELIMITERS, ".parquet")


def suffix_of(source: str) -> str:
    """Return what a source's name ends in, without an address's query."""
    path = source.partition("#")[0].partition("?")[0] if is_url(source) else source
    return Path(path).suffix.lower()


def parse_texts(source: str, content: bytes, expected: str) -> list[Any]:
    """Parse texts: of a .txt file one a line, of others as records; at least one.

    Raises:
      ValueError: as `parse_records`.
    """
    if suffix_of(source) != ".txt":
        return parse_records(source, content, expected)
    texts = [line for line in _decode(source, content, expected).split("\n") if line.strip()]
    if not texts:
        raise ValueError(f"{source} holds no texts; expected one a line")
    return texts


def parse_records(source: str, content: bytes, expected: str) -> list[Any]:
    """Parse a JSON list, JSON lines, a table or EasyEdit's arguments into records, at least one.

    Args:
      source: the file's path or address, by which its kind is told.
      content: of it.
      expected: for messages.

    Raises:
      ValueError: where it is not that; the message says where.
    """
    suffix = suffix_of(source)
    if suffix == ".parquet":
        records: Any = _parse_parquet(source, content, expected)
    elif suffix in DELIMITERS:
        text = _decode(source, content, expected)
        records = _parse_table(source, text, DELIMITERS[suffix], expected)
    elif suffix == ".jsonl":
        lines = enumerate(_decode(source, content, expected).split("\n"), start=1)
        records = [_parse(source, line, number, expected) for number, line in lines if line.strip()]
    else:
        records = _parse(source, _decode(source, content, expected), None, expected)
        records = records_of_call(source, records) if is_call(records) else records
    if not isinstance(records, list):
        raise ValueError(f"{source} holds {shorten_json(records)}; expected {expected}")
    if not records:
        raise ValueError(f"{source} is empty; expected at least one record")
    return records


def without_row_numbers(records: list[Any]) -> list[Any]:
    """Return records without the columns in which pandas kept the numbers of its rows."""
    rows = [record for record in records if isinstance(record, dict)]
    named = {name for row in rows for name in row if INDEX.fullmatch(name)}
    of_pandas = {name for name in named if all(_is_row_number(row.get(name)) for row in rows)}
    if not of_pandas:
        return records
    return [
        {name: value for name, value in record.items() if name not in of_pandas}
        if isinstance(record, dict)
        else record
        for record in records
    ]


def _is_row_number(value: Any) -> bool:
    return is_missing(value) or re.fullmatch(r"\d+(\.0)?", str(value)) is not None


def _decode(source: str, content: bytes, expected: str) -> str:
    """Decode UTF-8, with a byte-order mark or without."""
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text ({error}); expected {expected}") from error


def _parse(source: str, content: str, line: int | None, expected: str) -> Any:
    try:
        return parse_json(content, source, object, line)
    except ValueError as error:
        raise ValueError(f"{error}; expected {expected}") from error


def _parse_table(source: str, text: str, delimiter: str, expected: str) -> list[dict[str, Any]]:
    """Parse a table with a line of names: a record a row, in which an empty cell is null.

    Of a field that may be a list or an object, a cell that begins with a bracket or brace is JSON.
    """
    csv.field_size_limit(MOST_LETTERS)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{source} has more than one column {twice[0]!r}; expected {expected}")
        records = []
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise ValueError(
                    f"{source}, line {rows.line_num}: {len(row)} cells under {len(names)} names; "
                    f"a cell that holds {delimiter!r} stands in quotation marks"
                )
            where = f"{source}, line {rows.line_num}"
            records.append(
                {
                    name: _parse_cell(f"{where}, column {name}", name, cell)
                    for name, cell in zip(names, row, strict=True)
                }
            )
    except csv.Error as error:
        raise ValueError(f"{source}, line {rows.line_num}: {error}; expected {expected}") from error
    return records


def _parse_cell(where: str, name: str, cell: str) -> Any:
    """Return what a cell of a column holds."""
    if not cell:
        return None
    if name in CASE_NUMBERS and (number := WHOLE_NUMBER.fullmatch(cell)):
        return number[1]
    if name not in NESTED or not cell.startswith(("[", "{")):
        return cell
    try:
        return parse_json(cell, where, object)
    except ValueError as error:
        raise ValueError(f"{error}; a cell of {name} that begins so is read as JSON") from error


def _parse_parquet(source: str, content: bytes, expected: str) -> list[dict[str, Any]]:
    """Parse a Parquet table: a record a row."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{source} is no Parquet file ({said}); expected {expected}") from error
