"""What a converted model says of itself: converted.json in its folder.

It holds the model's fingerprints and the digest of each file of weights. Nothing in the
checkpoint's format tells a flipped bit of a weight, so these digests do. They are taken by threads,
and each process of a run does a share of the files.
"""

import functools
import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.distributed import broadcast_flag, map_over_processes
from jaxedit.files import read_json, write_atomic
from jaxedit.models.config import DecoderConfig
from jaxedit.models.fingerprints import (
    Fingerprints,
    compare_fingerprints,
    fingerprint_configuration,
    fingerprint_tokenizer,
)
from jaxedit.models.tokenizer import Tokenizer

WEIGHTS, RECORD = "weights", "converted.json"


def write_record(folder: Path, fingerprints: Fingerprints) -> None:
    """Write a converted model's fingerprints and the digests of its files of weights.

    Args:
      folder: that holds the files.
      fingerprints: of the model.
    """
    names = _weight_files(folder)
    digests = [array.tobytes().hex() for array in _digest_files(folder / WEIGHTS, names)]
    record = {
        "fingerprints": fingerprints._asdict(),
        "weights": dict(zip(names, digests, strict=True)),
    }
    write_atomic(folder / RECORD, json.dumps(record, indent=1))


def _weight_files(folder: Path) -> list[str]:
    """Return the names of a converted model's files of weights, from their folder on."""
    files = (path for path in (folder / WEIGHTS).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder / WEIGHTS).as_posix() for path in files)


def _digest_files(folder: Path, names: list[str]) -> list[np.ndarray]:
    """Digest files by SHA-256, eight integers each; several at a time."""

    def digest(name: str) -> np.ndarray:
        with (folder / name).open("rb") as file:
            return np.frombuffer(hashlib.file_digest(file, "sha256").digest(), np.int32)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, names))


def check_content(folder: Path) -> None:
    """Check that every file of a converted model's weights is as it was written.

    A model of a version that wrote no digests is taken as it is, and said to be unverified.

    Raises:
      ValueError: where one is damaged, missing or foreign.
    """
    if not broadcast_flag((folder / RECORD).is_file()):
        logging.getLogger("jaxedit").warning(
            "%s has no %s: a version of jaxedit that took no digests wrote it, so its weights "
            "cannot be verified; convert it again to have them checked",
            folder,
            RECORD,
        )
        return
    expected = _read_record(folder)["weights"]
    names = _weight_files(folder)
    changed = sorted(set(names) ^ set(expected))
    if not changed:
        digest = functools.partial(_digest_files, folder / WEIGHTS)
        found = map_over_processes(names, digest)
        changed = [
            name
            for name, array in zip(names, found, strict=True)
            if array.tobytes().hex() != expected[name]
        ]
    if changed:
        raise ValueError(
            f"{folder / WEIGHTS / changed[0]} is not as it was written (damaged, lost or added; "
            f"{RECORD} has its digest); convert the model again"
        )


def check_same_model(folder: Path, config: DecoderConfig, tokenizer: Tokenizer) -> None:
    """Check a converted model's configuration and tokenizer against the model it was made of.

    Args:
      folder: of the converted model.
      config: as its files say now.
      tokenizer: as its files say now.

    Raises:
      ValueError: where one of them was changed since.
    """
    if not (folder / RECORD).is_file():
        return
    theirs = _read_record(folder)["fingerprints"]
    # The weights may be loaded as another dtype; their files' digests were compared.
    theirs = {name: digest for name, digest in theirs.items() if name != "weights"}
    ours = Fingerprints(fingerprint_configuration(config), fingerprint_tokenizer(tokenizer), "")
    differing = compare_fingerprints(theirs, ours)
    if differing:
        raise ValueError(
            f"{folder} is not the model that was converted: {differing}. Its files were changed "
            "since; convert the model again"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    """Read what a conversion wrote of itself.

    Raises:
      ValueError: where it is not that.
    """
    record = read_json(folder / RECORD)
    for name in ("fingerprints", "weights"):
        held = record.get(name)
        if not isinstance(held, dict) or not all(isinstance(each, str) for each in held.values()):
            raise ValueError(
                f"{folder / RECORD} has no {name!r} with digests of jaxedit convert; convert the "
                "model again"
            )
    return record
