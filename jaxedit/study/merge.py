"""Shards of a study of single edits merged into the study that one process would have made."""

import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from jaxedit.files import exclusive_lock
from jaxedit.rounding import read_whole_number
from jaxedit.study.journal import Journal, Step, open_journal, read_journal
from jaxedit.study.run_file import differing_keys

DIFFER = ("config.shard", "config.mesh", "versions")  # from shard to shard


def merge_shards(folder: Path) -> Path:
    """Merge FOLDER/shard-I-of-N into FOLDER/merged, which is made anew; return it.

    Raises:
      ValueError: where a shard is missing or not finished, shards are of different studies (the
        message says which), or another process merges them.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there; give the folder that holds the shards")
    with exclusive_lock(folder):
        return _merge(folder, _read_shards(folder))


def _merge(folder: Path, shards: list[Journal]) -> Path:
    """Write the merged study, and put it in the place of an older one."""
    steps = [step for shard in shards for step in shard.steps[1:]]
    steps.sort(key=lambda step: step.record.step)
    numbers = [step.record.step for step in steps]
    missing = set(range(1, shards[0].run["n_edits"] + 1)) - set(numbers)
    if missing:
        raise ValueError(
            f"{folder}: edit {min(missing)} is not there yet; run the shards to their end first"
        )
    double = next((a for a, b in itertools.pairwise(numbers) if a == b), None)
    if double is not None:
        raise ValueError(f"{folder}: edit {double} is in two shards; restore them from a copy")
    unfinished, target = folder / "merged.part", folder / "merged"
    shutil.rmtree(unfinished, ignore_errors=True)
    journal = open_journal(unfinished, _merged_run(shards))
    for step in [shards[0].steps[0], *steps]:
        _copy(step, journal)
    if target.exists():
        read_journal(target)  # raises where something else lies there
        shutil.rmtree(target)
    return unfinished.rename(target)


def _merged_run(shards: list[Journal]) -> dict[str, Any]:
    """Return what the merged study is: what any shard says of it, and which steps are unverified.

    Lines that an older version wrote have no digests; in the merged journal all have. The edits
    that were copied out of them are said here.
    """
    merged: dict[str, Any] = {}
    for shard in shards:  # what only a shard that went on under this version says counts too
        merged = {**shard.run, **merged}
    unverified = []
    for shard in shards:
        older = [line.record.step for line in shard.lines if line.links is None]
        if older:
            logging.getLogger("jaxedit").warning(
                "%s: its first %d lines were written by an older version, without digests; they "
                "are merged as they are, and damage to them cannot be noticed",
                shard.folder,
                len(older),
            )
        unverified += [step for step in older if step > 0]
    if unverified:
        merged["unverified_steps"] = sorted(unverified)
    return {**merged, "config": {**merged["config"], "shard": ""}}


def shard_folder(folder: Path, shard: str) -> Path:
    """Return the folder of a shard "i/n" inside a study's work directory.

    One made before version 0.1 is called part-i-of-n, and stays so.
    """
    name = shard.replace("/", "-of-")
    old = folder / f"part-{name}"
    return old if old.is_dir() else folder / f"shard-{name}"


def _read_shards(folder: Path) -> list[Journal]:
    """Read the journals of all shards, checked to be of one study."""
    found = sorted([*folder.glob("shard-*-of-*"), *folder.glob("part-*-of-*")])
    if not found:
        raise ValueError(
            f"{folder} holds no shards; make them with `jaxedit study --config.shard=I/N "
            f"--workdir={folder}`"
        )
    n_shards, *others = {path.name.rpartition("-of-")[2] for path in found}
    if others:
        raise ValueError(
            f"{folder} holds shards of several divisions: {', '.join(path.name for path in found)}"
        )
    n = read_whole_number(n_shards)
    if not n:
        raise ValueError(f"{folder} holds {found[0].name}, which is no shard I of N")
    # One more than there are is enough to find one that is missing.
    numbers = range(1, min(n, len(found) + 1) + 1)
    paths = [shard_folder(folder, f"{i}/{n_shards}") for i in numbers]
    missing = [path.name for path in paths if not path.is_dir()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    journals = [read_journal(path) for path in paths]
    for path, journal in zip(paths, journals, strict=True):
        if not journal.steps:
            raise ValueError(f"{path} holds no step yet; run the shard to its end first")
        differing = differing_keys(journals[0].run, journal.run, DIFFER)
        if differing:
            raise ValueError(
                f"{path} is a shard of another study than {paths[0]}: their run.json differ in "
                f"{', '.join(differing[:6])}"
            )
    return journals


def _copy(step: Step, journal: Journal) -> None:
    step.check_arrays()
    with safe_open(step.arrays, framework="numpy") as file:
        names = file.keys()
        arrays = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}
    journal.append(step.record, arrays, metadata)
