"""Parts of a study of single edits put together: the study that one process would have made."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from jaxedit.study.journal import Journal, Step, open_journal, read_journal

DIFFER = ("part", "mesh")  # of the configuration, from part to part


def merge_shards(folder: Path) -> Path:
    """Joins FOLDER/part-I-of-N into FOLDER/merged, which is made anew; returns it.

    Raises:
      ValueError: where a part is missing or not finished, or parts are of different studies; the
        message says which.
    """
    parts = _read(folder)
    steps = sorted(
        (step for part in parts for step in part.steps[1:]), key=lambda step: step.record["step"]
    )
    gone = set(range(1, parts[0].run["n_edits"] + 1)) - {step.record["step"] for step in steps}
    if gone:
        raise ValueError(
            f"{folder}: edit {min(gone)} is not there yet; run the parts to their end first"
        )
    unfinished, target = folder / "merged.part", folder / "merged"
    shutil.rmtree(unfinished, ignore_errors=True)
    run = {**parts[0].run, "config": {**parts[0].run["config"], "part": ""}}
    journal = open_journal(unfinished, run)
    for step in [parts[0].steps[0], *steps]:
        _copy(step, journal)
    if target.exists():
        read_journal(target)  # raises where something else lies there
        shutil.rmtree(target)
    return unfinished.rename(target)


def _read(folder: Path) -> list[Journal]:
    """The journals of all parts, checked to be of one study."""
    found = sorted(folder.glob("part-*-of-*"))
    if not found:
        raise ValueError(
            f"{folder} holds no parts; make them with `jaxedit study --config.part=I/N --workdir={folder}`"
        )
    n_parts, *others = {path.name.rpartition("-of-")[2] for path in found}
    if others:
        raise ValueError(
            f"{folder} holds parts of several divisions: {', '.join(path.name for path in found)}"
        )
    paths = [folder / f"part-{i}-of-{n_parts}" for i in range(1, int(n_parts) + 1)]
    missing = [path.name for path in paths if not path.is_dir()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    journals = [read_journal(path) for path in paths]
    for path, journal in zip(paths, journals, strict=True):
        if not journal.steps:
            raise ValueError(f"{path} holds no step yet; run the part to its end first")
        if _what(journal.run) != _what(journals[0].run):
            raise ValueError(
                f"{path} is a part of another study than {paths[0]}: their run.json differ in more than the part"
            )
    return journals


def _what(run: dict[str, Any]) -> str:
    config = {key: value for key, value in run["config"].items() if key not in DIFFER}
    return json.dumps({**run, "config": config}, sort_keys=True)


def _copy(step: Step, journal: Journal) -> None:
    assert step.arrays is not None
    with safe_open(step.arrays, framework="numpy") as file:
        names = file.keys()
        arrays = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}
    journal.append(
        {key: value for key, value in step.record.items() if key != "arrays"}, arrays, metadata
    )
