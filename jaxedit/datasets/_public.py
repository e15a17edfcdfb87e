"""Public data sets by name: where their owners keep them, under which licence, and their digests.

Files whose content is known are compared with it. Of the others the digest of the first download is
kept in the user's cache folder, and another content later is an error: numbers that were made of
one version of a data set are not mixed with those of another.
"""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.datasets._sources import HUB_PREFIX
from jaxedit.downloads import download
from jaxedit.files import cache_folder, read_json, write_atomic

ROME = "https://rome.baulab.info/data/dsets"
KNOWEDIT = "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark"
ME_PPL = (
    "https://raw.githubusercontent.com/WanliYoung/Collapse-in-Model-Editing/"
    "ba8122e46ce31d3518a44e942540179cc7531f15/data/ME-PPL"
)
WIKIBIGEDIT = "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main"
WIKIBIGEDIT_DATES = (
    "20240201_20240220",
    "20240220_20240301",
    "20240301_20240320",
    "20240320_20240401",
    "20240401_20240501",
    "20240501_20240601",
    "20240601_20240620",
    "20240620_20240701",
)


class PublicData(NamedTuple):
    """A public data set.

    Attributes:
      about: what it is.
      addresses: of its files, whose records follow one another; or datasets:NAME of the `datasets`
        library, which keeps what it fetches itself.
      licence: as its owners state it.
      sha256: of each file; None: not known.
      remedy: what to do instead, where its owners have not published it; empty: they have.
    """

    about: str
    addresses: tuple[str, ...]
    licence: str
    sha256: tuple[str, ...] | None = None
    remedy: str = ""


PUBLIC = {
    "counterfact": PublicData(
        "CounterFact, 21,919 records (arXiv 2202.05262)", (f"{ROME}/counterfact.json",), "MIT"
    ),
    "zsre": PublicData(
        "zsRE, MEND's evaluation part, 19,086 records (arXiv 2110.11309)",
        (f"{ROME}/zsre_mend_eval.json",),
        "not stated",
    ),
    "knowedit": PublicData(
        "KnowEdit: ZsRE, Wiki-counterfact and Wiki-recent, their test parts (arXiv 2401.01286)",
        (
            f"{KNOWEDIT}/ZsRE/ZsRE-test-all.json",
            f"{KNOWEDIT}/wiki_counterfact/test_cf.json",
            f"{KNOWEDIT}/wiki_recent/recent_test.json",
        ),
        "MIT",
    ),
    "hardcf": PublicData(
        "HardCF, the hard cases of CounterFact (arXiv 2402.09656)",
        (),
        "",
        remedy="`jaxedit screen`, and a study of single edits of what it flags, find the hard "
        "cases of any facts for the model at hand",
    ),
    "hardedit": PublicData(
        "HardEdit, hard cases that were generated (arXiv 2402.09656)",
        (),
        "",
        remedy="`jaxedit hardedit` makes such cases for the model at hand",
    ),
    "me-ppl-50": PublicData(
        "ME-PPL_50, the paper's 50 texts (arXiv 2402.09656)",
        (f"{ME_PPL}/ME-PPL_50.json",),
        "MIT",
        ("55f3b951d2c4287b90d9e511f256efb9d47461f0da408a17dac5ffcef685c4e4",),
    ),
    "me-ppl-1k": PublicData(
        "ME-PPL_1k, a thousand texts (arXiv 2402.09656)",
        (f"{ME_PPL}/ME-PPL_1k.json",),
        "MIT",
        ("71e29fc5daf443b35ec16c8a9e91e1f4398b5b84ca7c25393639c066b65b5afb",),
    ),
    "wikibigedit": PublicData(
        "WikiBigEdit, 502,382 changes of Wikidata in their order (arXiv 2503.05683)",
        tuple(f"{WIKIBIGEDIT}/wiki_big_edit_{dates}.json" for dates in WIKIBIGEDIT_DATES),
        "CC-BY-SA-4.0",
    ),
    "ultraeditbench": PublicData(
        "UltraEditBench, two million records (arXiv 2505.14679)",
        (f"{HUB_PREFIX}XiaojieGu/UltraEditBench",),
        "not stated",
    ),
}


def read_public(
    name: str, parse: Callable[[str, bytes], list[Any]]
) -> Iterator[tuple[str, list[Any] | None]]:
    """Yield the address and the records of each file of a public data set; fetch it once.

    The `datasets` library reads and keeps its own: None in place of their records.

    Args:
      name: of the data set, one of `PUBLIC`.
      parse: address and content -> records; it raises a ValueError on what is no such file, which
        is then not kept.

    Raises:
      ValueError: where it is not published, cannot be fetched, or has another content than it had.
    """
    data = PUBLIC[name]
    if not data.addresses:
        raise ValueError(f"{data.about}: its authors have not published it. {data.remedy}")
    digests = data.sha256 or [None] * len(data.addresses)
    for address, digest in zip(data.addresses, digests, strict=True):
        is_file = not address.startswith(HUB_PREFIX)
        yield address, _read_checked(address, digest, parse) if is_file else None


def _read_checked(
    address: str, expected: str | None, parse: Callable[[str, bytes], list[Any]]
) -> list[Any]:
    """Read a file whose content is known, or is what it was when it was fetched first."""
    kept = cache_folder() / "files" / "digests.json"
    first = read_json(kept) if kept.is_file() else {}
    known = expected or first.get(address)

    def read(path: Path) -> tuple[str, list[Any]]:
        content = path.read_bytes()
        found = sha256(content).hexdigest()
        if known is not None and found != known:
            when = "is known to have" if expected else f"had when it was first fetched ({kept})"
            raise ValueError(
                f"{address} has the SHA-256 {found}, and not {known}, which it {when}: it was "
                "changed. Give the path of the file you mean"
            )
        return found, parse(address, content)

    digest, records = download(address, read)
    if known is None:
        write_atomic(kept, json.dumps({**first, address: digest}, indent=1))
    return records
