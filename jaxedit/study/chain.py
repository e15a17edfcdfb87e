"""Digests that tie the files of a study together, so that no damage goes unnoticed.

    run.json        "digest": of everything else in it
    journal.jsonl   of each line "arrays_digest": of its step's file; "previous": the digest of the
                    line before; "digest": of all that stands before it in the line
    retained.json   "digest": of everything else in it

The first line's "previous" is a digest of what the study is, from run.json. A journal that an older
version began has lines without digests; the first line after them digests them all together.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.files import flatten_keys, to_json

# Keys of run.json that may change while a study goes on, and those that say how it is written.
CHANGING = ("config.n_facts", "config.mesh", "n_edits", "versions")
WRITTEN = ("schema", "digest", "upgraded_from", "unverified_steps")

_LINE_END = re.compile(rb', "digest": "([0-9a-f]{32})"\}\n\Z')


class Links(NamedTuple):
    """What ties a line of a journal to its step's file and to the line before.

    Attributes:
      previous: the digest of the line before; of the first one, of what the study is.
      digest: the line's own.
      arrays_digest: of the step's file; None: the line has none.
    """

    previous: str
    digest: str
    arrays_digest: str | None


def digest_bytes(content: bytes) -> str:
    """Digest bytes to 32 hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Digest a file's content.

    Raises:
      OSError: where it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def first_link(run: Mapping[str, Any], before: bytes = b"") -> str:
    """Digest what a study is, and the lines before the chain begins.

    Args:
      run: the content of run.json; what may change while a study goes on does not count.
      before: lines that an older version wrote.
    """
    flat = {
        key: value
        for key, value in flatten_keys(run).items()
        if not key.startswith(CHANGING) and key not in WRITTEN
    }
    return digest_bytes(_canonical(flat) + before)


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add a digest to what is to be written as JSON."""
    plain = {key: value for key, value in to_json(values).items() if key != "digest"}
    return {**plain, "digest": digest_bytes(_canonical(plain))}


def is_sealed(values: Mapping[str, Any]) -> bool:
    """Tell whether JSON is what `seal` gave."""
    return values.get("digest") == seal(values)["digest"]


def was_changed(values: Mapping[str, Any]) -> bool:
    """Tell whether JSON with a digest is not what `seal` gave; older files have none."""
    return "digest" in values and not is_sealed(values)


def chain_line(values: Mapping[str, Any], previous: str, arrays_digest: str | None) -> bytes:
    """Write a line of a journal with its links.

    Args:
      values: of the line, as JSON can hold them.
      previous: the digest of the line before.
      arrays_digest: of the step's file; None: it has none.
    """
    linked = dict(values)
    if arrays_digest is not None:
        linked["arrays_digest"] = arrays_digest
    text = json.dumps({**linked, "previous": previous}, ensure_ascii=False)
    body = text.encode()[:-1]  # without its brace
    return body + f', "digest": "{digest_bytes(body)}"}}\n'.encode()


def is_chained(line: bytes) -> bool:
    """Tell whether a line is whole and as `chain_line` wrote it."""
    end = _LINE_END.search(line)
    return end is not None and end[1].decode() == digest_bytes(line[: end.start()])


def digest_of_line(line: bytes) -> str:
    """Return the digest that a line of `chain_line` ends with."""
    end = _LINE_END.search(line)
    assert end is not None
    return end[1].decode()


def take_links(values: dict[str, Any]) -> Links | None:
    """Take the links out of a line's values; None where it has none."""
    taken = {name: values.pop(name, None) for name in Links._fields}
    return None if taken["digest"] is None else Links(**taken)


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, ensure_ascii=False).encode()
