"""Studies that are killed, cut short, flipped, written to by two processes, or out of disk.

    PYTHONPATH=. python tests/big/damage_study.py --folder=FOLDER [--seed=5] [--rounds=kills,pairs]

Not a test: it takes an hour or two. Each injection is one entry of damage_study.json beside this
file; those that are there already (of the same seed) are not made again, so that an interrupted
run goes on. Each ends as one of

    right      refused by a message that names the file, with nothing written; or the work is done
               with the very bits of an undamaged study; or a report says that it is of fewer edits
    SILENT     other numbers, or another model, without a word
    TRACEBACK  another exception than ValueError and OSError
    UNCLEAR    a message that does not name the file or folder
"""

import collections
import json
import multiprocessing
import os
import random
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import damage_children as children
from absl import app, flags
from damage_files import ROUNDS as FILE_ROUNDS
from damage_files import everything

FOLDER = flags.DEFINE_string("folder", None, "where studies are made and damaged", required=True)
SEED = flags.DEFINE_integer("seed", 5, "of all that is left to chance")
WHICH = flags.DEFINE_list(
    "rounds", ["files", "disk", "pairs", "kills", "processes"], "kinds of damage"
)
N_KILLS = flags.DEFINE_integer("n_kills", 150, "kills of studies of one process")
N_PROCESSES = flags.DEFINE_integer("n_processes", 50, "kills of one process of two")
N_FILES = flags.DEFINE_integer("n_files", 1200, "cuts and flips of files")
RECORD = Path(__file__).with_suffix(".json")
PATIENCE_S = 300


class Record:
    """What was injected and how it ended, kept in a file."""

    def __init__(self, seed: int):
        self.seed = seed
        self.entries = json.loads(RECORD.read_text()) if RECORD.is_file() else []
        self.known = {(each["seed"], each["kind"], each["name"]) for each in self.entries}

    def has(self, kind: str, name: str) -> bool:
        """Tell whether an injection was made before."""
        return (self.seed, kind, name) in self.known

    def add(self, kind: str, name: str, outcome: str, detail: str = "") -> None:
        """Write how an injection ended."""
        entry = {"seed": self.seed, "kind": kind, "name": name, "outcome": outcome}
        self.entries.append(entry | ({"detail": detail[:400]} if detail else {}))
        self.known.add((self.seed, kind, name))
        partial = RECORD.with_suffix(".part")
        partial.write_text("[\n" + ",\n".join(map(json.dumps, self.entries)) + "\n]\n")
        partial.replace(RECORD)
        if outcome != "right":
            print(f"{outcome}: {kind} {name}: {detail}", flush=True)

    def print_table(self) -> None:
        """Print a row for each kind."""
        outcomes = ("right", "SILENT", "TRACEBACK", "UNCLEAR")
        print(f"seed {self.seed}\n| injected | how often | {' | '.join(outcomes)} |")
        print("|---|---:|---:|---:|---:|---:|")
        counts: dict[str, collections.Counter] = {}
        for each in self.entries:
            if each["seed"] == self.seed:
                counts.setdefault(each["kind"], collections.Counter())[each["outcome"]] += 1
        for kind, count in counts.items():
            cells = " | ".join(str(count[name]) for name in outcomes)
            print(f"| {kind} | {count.total()} | {cells} |")


class Workshop:
    """The folder with inputs and undamaged studies, and processes that have imported jaxedit."""

    def __init__(self, folder: Path):
        self.folder, self.inputs = folder.resolve(), folder.resolve() / "inputs"
        children.write_inputs(self.inputs)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["jaxedit.study.loop", "jaxedit.study.undo"])
        self.whole: dict[str, Path] = {}
        self.time_s: dict[str, float] = {}

    def start(self, target: Any, *args: Any, **keys: Any) -> Any:
        """Start a process."""
        process = self.context.Process(target=target, args=args, kwargs=keys)
        process.start()
        return process

    def study(self, name: str, workdir: Path, said: Path, **keys: Any) -> Any:
        """Start a process that runs a study."""
        said.unlink(missing_ok=True)
        return self.start(children.run_child, name, self.inputs, workdir, said, **keys)

    def undamaged(self, name: str) -> Path:
        """Return the folder of a study that nothing happened to; it is made once."""
        path, said = self.folder / "whole" / name, self.folder / "said"
        if name not in self.whole:
            began = time.monotonic()
            finish(self.study(name, path, said))
            began, first_s = time.monotonic(), time.monotonic() - began
            fresh = self.empty("timed")
            finish(self.study(name, fresh, said))
            self.time_s[name] = time.monotonic() - began
            assert said.read_text() == "done", said.read_text()
            assert everything(fresh) == everything(path), f"{name} is not the same twice"
            print(f"{name}: {first_s:.1f} s, compiled {self.time_s[name]:.1f} s", flush=True)
            self.whole[name] = path
        return path

    def empty(self, name: str) -> Path:
        """Return the path of a folder that is not there."""
        path = self.folder / "damaged" / name
        shutil.rmtree(path, ignore_errors=True)
        return path


def finish(process: Any) -> None:
    """Wait for the end of a process; one that does not end is killed."""
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        process.join()


def judge_ends(shop: Workshop, name: str, workdir: Path, said: list[str]) -> tuple[str, str]:
    """Judge how processes ended, and the study that one more process goes on with."""
    for each in said:
        if each.startswith("traceback"):
            return "TRACEBACK", each
        if each.startswith("refused") and str(workdir) not in each:
            return "UNCLEAR", each
    last = shop.folder / "said-last"
    finish(shop.study(name, workdir, last))
    if last.read_text() != "done":
        return "SILENT", f"cannot go on: {last.read_text()}"
    same = everything(workdir) == everything(shop.undamaged(name))
    return ("right", "; ".join(said)) if same else ("SILENT", "another study came out")


def kill_rounds(shop: Workshop, record: Record) -> None:
    """SIGKILL at random moments; the next process goes on, until the study is done."""
    number, n_ended = 0, 0
    while number < N_KILLS.value:
        name = list(children.STUDIES)[(number + n_ended) % len(children.STUDIES)]
        if record.has("SIGKILL at a random moment", str(number)):
            number += 1
            continue
        shop.undamaged(name)
        workdir, said, first = shop.empty("killed"), shop.folder / "said", number
        rng = random.Random(f"{SEED.value} {number} {n_ended}")  # others where none was killed
        killed = 0
        while killed < 8 and number + killed < N_KILLS.value:
            process = shop.study(name, workdir, said)
            process.join(rng.uniform(0.05, 1.1 * shop.time_s[name]))
            if not process.is_alive():
                n_ended += 1
                break
            process.kill()
            process.join()
            killed += 1
        outcome, detail = judge_ends(shop, name, workdir, [])
        for i in range(killed):
            record.add("SIGKILL at a random moment", str(first + i), outcome, f"{name} {detail}")
        number = first + killed


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def process_rounds(shop: Workshop, record: Record) -> None:
    """SIGKILL of one process of two, which work together; both begin again."""
    kind, said = "SIGKILL of one process of two", [shop.folder / f"said{i}" for i in range(2)]

    def both(workdir: Path) -> list[Any]:
        port = free_port()
        return [
            shop.study("rome", workdir, said[i], process=(port, i), pause_s=0.2) for i in range(2)
        ]

    whole, began = shop.folder / "whole" / "two-processes", time.monotonic()
    if not (whole / "retained.json").is_file():
        shutil.rmtree(whole, ignore_errors=True)
        for process in both(whole):
            finish(process)
    began, fresh = time.monotonic(), shop.empty("two")
    for process in both(fresh):
        finish(process)
    time_s = time.monotonic() - began
    assert everything(fresh) == everything(whole), "two processes are not the same twice"
    for number in range(N_PROCESSES.value):
        if record.has(kind, str(number)):
            continue
        rng = random.Random(f"{SEED.value} two {number}")
        workdir, victim = shop.empty("two"), rng.randrange(2)
        processes = both(workdir)
        processes[victim].join(rng.uniform(0.3, 1.0) * time_s)
        if not processes[victim].is_alive():
            record.add(kind, str(number), "right", "it had ended before")
            continue
        processes[victim].kill()
        processes[1 - victim].join(60)
        waited = processes[1 - victim].is_alive()
        for process in processes:
            process.kill()
            process.join()
        for process in both(workdir):
            finish(process)
        ends = [path.read_text() for path in said]
        same = ends == ["done", "done"] and everything(workdir) == everything(whole)
        detail = f"process {victim} killed; {ends}; the other one {'waits' if waited else 'ended'}"
        record.add(kind, str(number), "right" if same else "SILENT", detail)


def pair_rounds(shop: Workshop, record: Record) -> None:
    """Two processes at once on one work directory, with locks and without."""
    ways = [
        (name, after, locks)
        for name in ("rome", "memit-sequential", "single")
        for after in (-1, 0, 2)
        for locks in (True, False)
    ]
    for name, after, locks in [*ways, ("undo", 1, True), ("undo", 3, True)]:
        kind = "two processes at once on one work directory"
        label = f"{name}, the second after step {after}{'' if locks else ', no locks'}"
        if record.has(kind, label):
            continue
        study = "rome" if name == "undo" else name
        shop.undamaged(study)
        workdir, said = shop.empty("shared"), [shop.folder / f"said{i}" for i in range(2)]
        keys: dict[str, Any] = dict(pause_s=2.0, locks=locks)
        first = shop.study(study, workdir, said[0], **keys)
        until = time.monotonic() + PATIENCE_S
        while after >= 0 and first.is_alive() and time.monotonic() < until:
            text = said[0].read_text() if said[0].is_file() else ""
            if text.startswith("step ") and int(text[5:]) >= after:
                break
            time.sleep(0.05)
        if name == "undo":
            second = shop.start(children.undo_child, workdir, said[1])
        else:
            second = shop.study(study, workdir, said[1], **keys)
        for process in (first, second):
            finish(process)
        ends = [path.read_text() for path in said]
        if "done" not in ends and locks:
            record.add(kind, label, "SILENT", f"nobody came to an end: {ends}")
            continue
        record.add(kind, label, *judge_ends(shop, study, workdir, ends))


def disk_rounds(shop: Workshop, record: Record) -> None:
    """Files that cannot grow beyond a limit (RLIMIT_FSIZE), in a process of their own."""
    kind = "a limit on the size of files"
    for name in children.STUDIES:
        whole = shop.undamaged(name)
        sizes = sorted({path.stat().st_size for path in whole.rglob("*") if path.is_file()})
        for limit in [size - 1 for size in sizes if size > 1]:
            if record.has(kind, f"{name} {limit}"):
                continue
            workdir, said = shop.empty("full"), shop.folder / "said"
            finish(shop.study(name, workdir, said, max_file_bytes=limit))
            end = said.read_text() if said.is_file() else "nothing"
            record.add(kind, f"{name} {limit}", *judge_ends(shop, name, workdir, [end]))


def main(_: list[str]) -> None:
    """Make all injections that are not there yet, and print the table."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(f"seed {SEED.value}", flush=True)
    shop, record = Workshop(Path(FOLDER.value)), Record(SEED.value)
    rounds = {
        "files": lambda: [each(shop, record, SEED.value, N_FILES.value) for each in FILE_ROUNDS],
        "disk": lambda: disk_rounds(shop, record),
        "pairs": lambda: pair_rounds(shop, record),
        "kills": lambda: kill_rounds(shop, record),
        "processes": lambda: process_rounds(shop, record),
    }
    for name in WHICH.value:
        rounds[name]()
    record.print_table()


if __name__ == "__main__":
    app.run(main)
