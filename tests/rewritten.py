"""Studies' files rewritten by hand, with the digests that they would have had."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxedit.study.chain import chain_line, digest_of_line, first_link, seal
from jaxedit.study.journal_end import MARK

LINKS = ("arrays_digest", "previous", "digest")


def rewrite_run(folder: Path, **values: Any) -> dict[str, Any]:
    """Write other values to run.json; return what was there before."""
    path = folder / "run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(seal(run | values), indent=2, ensure_ascii=False), encoding="utf-8")
    rewrite_lines(folder, lambda values: None)
    return run


def rewrite_lines(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the values of each line of a journal in place, and chain the lines anew."""
    path = folder / "journal.jsonl"
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    link, written = first_link(run), b""
    for line in path.read_bytes().splitlines():
        values = json.loads(line)
        arrays_digest, *_ = (values.pop(name, None) for name in LINKS)
        change(values)
        written += chain_line(values, link, arrays_digest)
        link = digest_of_line(written[written[:-1].rfind(b"\n") + 1 :])
    path.write_bytes(written)
    (folder / MARK).unlink(missing_ok=True)


def without_links(line: bytes | str) -> dict[str, Any]:
    """Return a line's values without what ties it to others."""
    return {name: value for name, value in json.loads(line).items() if name not in LINKS}


def as_older(folder: Path, schema: int = 2) -> None:
    """Make a study's folder one of a version that knew no digests."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for name in ("digest", "versions", "fingerprints"):
        run.pop(name, None)
    content = json.dumps(run | {"schema": schema}, indent=2, ensure_ascii=False)
    (folder / "run.json").write_text(content, encoding="utf-8")
    (folder / MARK).unlink(missing_ok=True)
    path = folder / "journal.jsonl"
    lines = [json.dumps(without_links(x), ensure_ascii=False) for x in path.open("rb")]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
