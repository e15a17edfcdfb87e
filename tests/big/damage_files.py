"""Files of finished studies that are cut short, flipped, exchanged or lost, and a disk that is full
at each write: the rounds of `damage_study.py` that need no other process.
"""

import errno
import functools
import itertools
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import damage_children as children

LOCKS = {".lock", ".lock-owner"}
Judged = tuple[str, str]


def untimed(record: Any) -> dict[str, Any]:
    """Return a record without what two runs of the same study differ in."""
    from jaxedit.files import to_json

    return {key: value for key, value in to_json(record.to_dict()).items() if key != "time_s"}


def everything(folder: Path) -> dict[str, Any]:
    """Return all that a study's folder says, but for times."""
    from jaxedit.study.journal import read_journal

    journal = read_journal(folder)
    retained = folder / "retained.json"
    return {
        "run": journal.run,
        "records": [untimed(step.record) for step in journal.steps],
        "arrays": [step.arrays.read_bytes() for step in journal.steps],
        "retained": json.loads(retained.read_text()) if retained.is_file() else None,
    }


def report(folder: Path) -> list[str]:
    """Return the lines of a study's report, but for times."""
    from jaxedit.reports.markdown import report_markdown
    from jaxedit.reports.records import edit_steps
    from jaxedit.study.journal import read_journal

    journal = read_journal(folder)
    lines = report_markdown(journal, edit_steps(journal)).splitlines()
    return [line for line in lines if not re.search(r"\d s(,| in \d)", line)]


def details(folder: Path) -> list[Any]:
    """Return what `jaxedit show` says of each edit, but for times."""
    from jaxedit.reports.edit_details import edit_details
    from jaxedit.study.journal import read_journal

    journal = read_journal(folder)
    found = [edit_details(journal, step.record.step) for step in journal.steps[1:]]
    for each in found:
        each["record"].pop("time_s", None)
    return json.loads(json.dumps(found, default=str))


def model(folder: Path) -> list[bytes]:
    """Return the overlay of a study's model, of single edits that with the first."""
    import numpy as np

    from jaxedit.study.journal import read_journal
    from jaxedit.study.replay import edited_model

    single = read_journal(folder).run["config"]["mode"] == "single"
    edited = edited_model(folder, run_steps=[1] if single else None)
    return [np.asarray(delta).tobytes() for delta in edited.overlay.delta.values()]


def content(folder: Path) -> dict[str, bytes]:
    """Return a folder's files but for locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in LOCKS
    }


def resume(name: str, inputs: Path, folder: Path) -> dict[str, Any]:
    """Go on with a study, and return all that its folder says then."""
    from jaxedit.study.loop import run_study

    before = content(folder)
    try:
        run_study(children.config_of(name, inputs), folder)
    except (ValueError, OSError):
        assert content(folder) == before, "something was written before it was refused"
        raise
    return everything(folder)


def judge(action: Callable[[], Any], expected: Any, folder: Path) -> Judged:
    """Judge how an action on a damaged folder ends, beside what it gives of an undamaged one."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("jaxedit")
    logger.addHandler(handler)
    try:
        found = action()
    except (ValueError, OSError) as error:
        names = str(folder) in str(error)
        return ("right" if names else "UNCLEAR"), str(error)
    except Exception as error:
        return "TRACEBACK", repr(error)
    finally:
        logger.removeHandler(handler)
    if found == expected:
        return "right", ""
    shown = [*said, *(found if isinstance(found, list) else [])]
    if any("is not finished" in line for line in shown if isinstance(line, str)):
        return "right", "said to be unfinished"
    if isinstance(found, list) and action.__name__ == "details" and found == expected[: len(found)]:
        return "right", "those that are left"
    return "SILENT", "differs"


def judge_all(shop: Any, name: str, folder: Path, expected: dict[str, Any]) -> dict[str, Judged]:
    """Judge all that reads a folder: report, show, the model, and then the study that goes on."""
    reading = {"report": report, "show": details, "model": model}
    judged = {}
    for way, read in reading.items():
        action = functools.wraps(read)(functools.partial(read, folder))
        judged[way] = judge(action, expected[way], folder)
    going_on = functools.partial(resume, name, shop.inputs, folder)
    going_on.__name__ = "resume"  # type: ignore[attr-defined]
    judged["resume"] = judge(going_on, expected["resume"], folder)
    return judged


@functools.cache
def prepared(shop: Any, name: str) -> tuple[Path, dict[str, Any]]:
    """Make an undamaged study with its report, and say what each way of reading gives of it."""
    from jaxedit.reports.markdown import write_report
    from jaxedit.study import context, replay

    children.set_up(shop.inputs / "cache")
    whole = shop.undamaged(name)
    write_report(whole)
    # The model is loaded once: what is damaged here is the study.
    load = functools.cache(lambda source: replay_load(source))
    replay.load = lambda source, **_: load(source)
    assert context.load_start is replay.load_start
    expected = {"report": report(whole), "show": details(whole), "model": model(whole)}
    return whole, expected | {"resume": everything(whole)}


def replay_load(source: str) -> Any:
    """Load a model."""
    import jaxedit

    return jaxedit.load(source)


def cuts_and_flips(shop: Any, record: Any, seed: int, n: int) -> None:
    """Cut files of finished studies short at a random byte, or flip one of their bits."""
    names = list(children.STUDIES)
    for number in range(n):
        name, cut = names[number % len(names)], number // len(names) % 2 == 0
        kind = f"a file {'cut short' if cut else 'with a flipped bit'}"
        if record.has(f"{kind}: resume", str(number)):
            continue
        whole, expected = prepared(shop, name)
        rng = random.Random(f"{seed} file {number}")
        files = [path for path in sorted(content(whole)) if (whole / path).stat().st_size]
        folder = shutil.copytree(whole, shop.empty("files"))
        path = folder / files[number // (2 * len(names)) % len(files)]
        damaged = bytearray(path.read_bytes())
        at, bit = rng.randrange(len(damaged)), rng.randrange(8)
        if cut:
            del damaged[at:]
        else:
            damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        where = f"{name} {path.relative_to(folder)} at {at}: "
        for way, (outcome, detail) in judge_all(shop, name, folder, expected).items():
            record.add(f"{kind}: {way}", str(number), outcome, where + detail)


def pieces(folder: Path, foreign: Path) -> dict[str, Callable[[], object]]:
    """Return what is done to a folder on purpose; `foreign` is another study's."""
    journal, steps = folder / "journal.jsonl", folder / "steps"
    lines = journal.read_bytes().splitlines(keepends=True)
    others = (foreign / "journal.jsonl").read_bytes().splitlines(keepends=True)
    files = [path.name for path in sorted(steps.iterdir())]

    def write(changed: list[bytes]) -> Callable[[], object]:
        return lambda: journal.write_bytes(b"".join(changed))

    def exchange(a: str, b: str) -> None:
        first, second = (steps / a).read_bytes(), (steps / b).read_bytes()
        (steps / a).write_bytes(second)
        (steps / b).write_bytes(first)

    made: dict[str, Callable[[], object]] = {
        "files of steps 2 and 3 exchanged": lambda: exchange(files[2], files[3]),
        "all lines of another study": write(others),
        "run.json of another study": lambda: shutil.copy(foreign / "run.json", folder),
        "steps/ gone": lambda: shutil.rmtree(steps),
        "kept changed": write([lines[0], lines[1].replace(b'"kept": ', b'"kept":  '), *lines[2:]]),
    }
    for at in range(len(lines)):
        rest = lines[:at], lines[at + 1 :]
        made[f"line {at} lost"] = write([*rest[0], *rest[1]])
        made[f"line {at} doubled"] = write([*rest[0], lines[at], lines[at], *rest[1]])
        made[f"line {at} of another study"] = write([*rest[0], others[at % len(others)], *rest[1]])
        made[f"line {at} is null"] = write([*rest[0], b"null\n", *rest[1]])
        made[f"lines {at} and 2 exchanged"] = write(
            [lines[{at: 2, 2: at}.get(i, i)] for i in range(len(lines))]
        )
    for path in files:
        made[f"{path} gone"] = (steps / path).unlink
        made[f"{path} of another study"] = functools.partial(
            shutil.copy, foreign / "steps" / path, steps / path
        )
    for path in ("run.json", "journal.jsonl", "retained.json"):
        if not (folder / path).is_file():
            continue
        for text in ("", "{}", "[]", "null", "[" * 100_000, "\0" * 100):
            made[f"{path} is {text[:5]!r}"] = functools.partial((folder / path).write_text, text)
        made[f"{path} gone"] = (folder / path).unlink
    return made


def set_pieces(shop: Any, record: Any, seed: int, n: int) -> None:
    """Exchange, double and lose lines and files, also with those of another study."""
    names = list(children.STUDIES)
    for i, name in enumerate(names):
        whole, expected = prepared(shop, name)
        foreign, _ = prepared(shop, names[(i + 1) % len(names)])
        for piece in pieces(whole, foreign):
            if record.has("set pieces: resume", f"{name}, {piece}"):
                continue
            folder = shutil.copytree(whole, shop.empty("pieces"))
            pieces(folder, foreign)[piece]()
            for way, (outcome, detail) in judge_all(shop, name, folder, expected).items():
                record.add(f"set pieces: {way}", f"{name}, {piece}", outcome, detail)


def full_disks(shop: Any, record: Any, seed: int, n: int) -> None:
    """Let the n-th fsync of a study say that the disk is full, for each n; then make room."""
    from jaxedit.study.loop import run_study

    real = os.fsync
    for name in children.STUDIES:
        _, expected = prepared(shop, name)
        for at in itertools.count(1):
            calls = itertools.count(1)

            def fsync(descriptor: int, at: int = at, calls: Any = calls) -> None:
                if next(calls) == at:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                real(descriptor)

            folder, config = shop.empty("disk"), children.config_of(name, shop.inputs)
            try:
                with mock.patch("os.fsync", fsync):
                    run_study(config, folder)
                was_full = next(calls) > at  # of a folder: it says nothing of the content
                first: Judged = ("right", "")
            except (ValueError, OSError) as error:
                was_full, first = True, ("right", str(error))
            except Exception as error:
                was_full, first = True, ("TRACEBACK", repr(error))
            if not was_full:
                break
            resumed = functools.partial(resume, name, shop.inputs, folder)
            resumed.__name__ = "resume"  # type: ignore[attr-defined]
            second = judge(resumed, expected["resume"], folder)
            if second[0] == "right" and second[1]:
                second = ("SILENT", f"cannot go on: {second[1]}")
            worst = first if first[0] != "right" else second
            record.add("a full disk at each write", f"{name}, fsync {at}", *worst)


ROUNDS = (full_disks, set_pieces, cuts_and_flips)
