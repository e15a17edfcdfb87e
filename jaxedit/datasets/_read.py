"""Readers of requests and texts; a record's form is told by its keys and read by its own file."""

import functools
import importlib
import importlib.resources
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxedit.datasets._fields import is_missing, read_fields
from jaxedit.datasets._files import (
    SUFFIXES,
    parse_records,
    parse_texts,
    suffix_of,
    without_row_numbers,
)
from jaxedit.datasets._public import PUBLIC, read_public
from jaxedit.datasets._sources import HUB_PREFIX, hub_rows
from jaxedit.downloads import download, is_url
from jaxedit.edits.request import Request
from jaxedit.edits.subjects import find_subject
from jaxedit.files import expand_home, shorten_json
from jaxedit.remote import fetch_file, fetch_folder, is_remote

BUILTIN = "builtin"  # the facts and texts that come with the package, in demo/

# What errors say is expected.
RECORD_FILES = (
    "a .json file with a list of records, a .jsonl file with one a line, or a .csv, .tsv or "
    ".parquet file with one a row"
)
TEXT_FILES = (
    "a .json list of texts, a .jsonl or .txt file with one a line, or a .csv, .tsv or .parquet "
    "file with a column text"
)


class Requests(NamedTuple):
    """The requests of a source.

    Attributes:
      requests: in the order of the records.
      n_skipped: how many records were left out: an empty answer, or no subject in the prompt.
      form: of the records.
    """

    requests: list[Request]
    n_skipped: int
    form: str


def form_names() -> list[str]:
    """Return the names of the forms of record."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def form_module(name: str) -> ModuleType:
    """Return the module that reads a form."""
    return importlib.import_module(f"jaxedit.datasets.{name.replace('-', '_')}")


def read_requests(source: str | os.PathLike[str]) -> Requests:
    """Read the requests of a source, whose form is told by the keys of its first record.

    Args:
      source: "builtin"; a public data set (`jaxedit.datasets.PUBLIC`); the path or address of a
        .json file with a list of records or the arguments of EasyEdit's `edit`, of a .jsonl file,
        or of a .csv, .tsv or .parquet table; or `datasets:NAME[,CONFIG[,SPLIT]]`.

    Raises:
      ValueError: on a file that is missing, is not JSON, or holds nothing to edit; an unknown form;
        a record that lacks a field or has one of the wrong type. The message names the file and the
        record.
    """
    source = expand_home(source)
    if source.startswith(HUB_PREFIX):
        records = list(hub_rows(source.removeprefix(HUB_PREFIX), expected=RECORD_FILES))
    else:
        records = _read_source(source, "facts.json", RECORD_FILES, parse_records)
    if not records:
        raise ValueError(f"{source} is empty; expected at least one record")
    records = without_row_numbers(records)
    form = _recognise_form(source, records[0])
    found = _requests_of(source, form, records)
    usable = [request for request in found if request is not None]
    if not usable:
        raise ValueError(
            f"{source} holds nothing to edit: in all {len(records)} records (form {form}) an "
            "answer is empty or the subject does not occur in the prompt"
        )
    _warn_of_places(source, form, usable)
    return Requests(usable, len(found) - len(usable), form)


def read_texts(source: str | os.PathLike[str]) -> list[str]:
    """Read the texts in a file, verbatim: leading spaces are kept.

    Args:
      source: "builtin", a public set of texts ("me-ppl-50"), or the path or address of a .json
        file with a list of strings or of records with a "Text" or "text" (ME-PPL), a .jsonl file of
        the same, a table with such a column, or a .txt file with one text a line (lines of white
        space alone are dropped).

    Raises:
      ValueError: on a file that is missing, is not JSON (unless .txt), or holds no texts. The
        message names the file and where.
    """
    source = expand_home(source)
    records = _read_source(source, "texts.json", TEXT_FILES, parse_texts)
    return [_text_of(source, i, record) for i, record in enumerate(records)]


def read_corpus(source: str | os.PathLike[str], n_texts: int | None = None) -> list[str]:
    """Read the texts of a corpus: a file, a directory of files, or a data set.

    Args:
      source: "builtin", a path as `read_texts` takes it, a directory of such files, or
        `datasets:NAME[,CONFIG[,SPLIT]]`, a data set of the `datasets` library whose column `text`
        is streamed.
      n_texts: at most so many of a data set (its first); absent: all.

    Raises:
      ValueError: as `read_texts`; on a directory without such files; on a data set that cannot be
        had, or has a row without a text.
    """
    source = expand_home(source)
    if source.startswith(HUB_PREFIX):
        rows = hub_rows(source.removeprefix(HUB_PREFIX), n_texts, TEXT_FILES)
        texts = [_text_of(source, i, row) for i, row in enumerate(rows)]
        return [text for text in texts if text.strip()]
    folder = Path(source)
    if is_remote(source) and suffix_of(source) not in SUFFIXES:
        folder = fetch_folder(source, [f"*{suffix}" for suffix in SUFFIXES], ["*/*"])
    if not folder.is_dir():
        return read_texts(source)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{source} holds no {', '.join(SUFFIXES)} file")
    return [text for path in paths for text in read_texts(str(path))]


def _requests_of(source: str, form: str, records: list[Any]) -> list[Request | None]:
    """Check records one by one and return their requests, None for one that cannot be used."""
    module, found = form_module(form), []
    is_together = hasattr(module, "requests")  # its records say only together what to write
    for i, record in enumerate(records):
        try:
            read = read_fields(record, module.FIELDS, "the record")
            found.append(read if is_together else module.request(read))
        except ValueError as error:
            raise ValueError(
                f"{source}, record {i} (counted from 0, read as the form {form}): {error}"
            ) from error
    if not is_together:
        return found
    try:
        return module.requests(found)
    except ValueError as error:
        raise ValueError(f"{source} (read as the form {form}): {error}") from error


def _warn_of_places(source: str, form: str, requests: list[Request]) -> None:
    """Say where the first of several places was taken for the subject's."""
    if form == "own":  # whose prompts say it, or are refused
        return
    several = [
        request for request in requests if find_subject(request.prompt, request.subject) is not None
    ]
    if several:
        logging.getLogger("jaxedit").warning(
            f"{source}: in {len(several)} of {len(requests)} prompts the subject stands more than "
            f"once, and the first place was taken, e.g. {several[0].prompt!r} of "
            f"{several[0].subject!r}; {{}} in a prompt says which place is meant"
        )


def _text_of(source: str, i: int, record: Any) -> str:
    text = record
    if isinstance(record, dict):
        text = record.get("text") if is_missing(record.get("Text")) else record["Text"]
    if not isinstance(text, str):
        raise ValueError(
            f"{source}, record {i} (counted from 0): expected a string, or an object with a string "
            f'under "Text" or "text"; got {shorten_json(record)}'
        )
    return text


def _read_source(
    source: str, builtin_file: str, expected: str, parse: Callable[..., list[Any]]
) -> list[Any]:
    """Read the records of a file, one that is fetched first, or the built-in one.

    Args:
      source: path, address, name of a public data set, or "builtin".
      builtin_file: its name.
      expected: for the message.
      parse: (source, content, expected) -> records.
    """
    if source == BUILTIN:
        folder = importlib.resources.files("jaxedit.datasets").joinpath("demo")
        return parse(builtin_file, folder.joinpath(builtin_file).read_bytes(), expected)
    if source in PUBLIC:
        records: list[Any] = []
        of_file = functools.partial(parse, expected=expected)
        for address, found in read_public(source, of_file):
            if found is None:
                found = hub_rows(address.removeprefix(HUB_PREFIX), expected=expected)
            records += found
        return records
    if is_url(source):
        return download(source, lambda path: parse(source, path.read_bytes(), expected))
    path = fetch_file(source) if is_remote(source) else Path(source)
    if not path.is_file():
        raise ValueError(
            f"there is no file {source}; expected {BUILTIN!r}, a public data set "
            f"({', '.join(PUBLIC)}), or the path or address of {expected}"
        )
    return parse(source, path.read_bytes(), expected)


def _recognise_form(source: str, record: Any) -> str:
    """Return the form with the most `KEYS`, all of them in the record."""
    keys = frozenset(record) if isinstance(record, dict) else frozenset()
    modules = {name: form_module(name) for name in form_names()}
    known = [
        (name, told)
        for name, module in modules.items()
        for told in (module.KEYS, *getattr(module, "MORE_KEYS", ()))
    ]
    known.sort(key=lambda form: -len(form[1]))
    for name, told in known:
        if told <= keys:
            return name
    forms = "; ".join(f"{name} ({', '.join(sorted(told))})" for name, told in known)
    found = f"has the keys {', '.join(sorted(keys))}" if keys else f"is {shorten_json(record)}"
    raise ValueError(
        f"{source}: the first record {found}, which is no form known here. The forms and their "
        f"keys: {forms}"
    )
