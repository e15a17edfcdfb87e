"""Mutated inputs for everything that jaxedit reads: is each of them answered properly?

    python tests/big/mutate_inputs.py [--n_inputs=12000] [--seed=0] [--readers=gguf,npz]
    [--out=mutated.json]

A check, not a test. For every reader (mutated_readers.py, mutated_studies.py) inputs are made of
whole ones by typed mutations and mutations of bytes (mutations.py), a worker process each. An input
is answered properly where it is read, or refused by a ValueError or OSError that jaxedit raised
itself and that names the file. What else happened is kept with the input's number:

    TRACEBACK  another exception reaches the user
    UNCLEAR    a library's or builtin's error passed on, or one that does not name the file
    SLOW       over 20 s
    MEMORY     over 2 GB more than the worker had before
    DIED       the process was killed by a signal

Input i of a reader depends on the seed, the reader and i alone; --readers=NAME --only=i makes it
again and shows its traceback. Results are written as they come: the same command goes on where it
was stopped. Hardware: one core; about ten minutes for 12,000 inputs."""

import collections
import contextlib
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from absl import app, flags

SEED = flags.DEFINE_integer("seed", 0, "decides all inputs")
N_INPUTS = flags.DEFINE_integer("n_inputs", 12_000, "of all readers together, about")
READERS = flags.DEFINE_list("readers", [], "those to try; absent: all")
OUT = flags.DEFINE_string("out", "mutated.json", "results; the same file is gone on with")
ONLY = flags.DEFINE_integer("only", None, "make this input of the reader again, with traceback")
WORKER = flags.DEFINE_list("worker", None, "(own use) reader, first input, end")

LIMIT_S = 20
LIMIT_BYTES = 2 * 2**30
DEAF_S = 45  # code that does not hear its alarm is killed
PACKAGE = str(Path(__file__).resolve().parents[2] / "jaxedit")
OUTCOMES = ("accepted", "refused", "TRACEBACK", "UNCLEAR", "SLOW", "MEMORY", "DIED")


class TooSlow(BaseException):
    """An input took longer than LIMIT_S."""


def main(argv: list[str]) -> None:
    """Try all readers, or be the worker of one."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    if WORKER.value is not None:
        name, first, end = WORKER.value
        return work(name, int(first), int(end))
    if ONLY.value is not None:
        return show_one(READERS.value[0], ONLY.value)
    from mutated_readers import readers

    known = readers()
    print(f"seed {SEED.value}", flush=True)
    scale = N_INPUTS.value / sum(reader.share for reader in known.values())
    out = Path(OUT.value)
    kept = json.loads(out.read_text()) if out.is_file() else {"seed": SEED.value, "readers": {}}
    if kept["seed"] != SEED.value:
        raise app.UsageError(f"{out} is of seed {kept['seed']}; give another --out")
    for name, reader in known.items():
        if not READERS.value or name in READERS.value:
            n = round(reader.share * scale)
            try_reader(name, n, kept["readers"].setdefault(name, {"next": 0}), out, kept)
    print(table(kept))
    return None


def try_reader(name: str, n: int, found: dict, out: Path, kept: dict) -> None:
    """Run workers over a reader's inputs until all are tried."""
    begun = time.monotonic()
    while found["next"] < n:
        command = [sys.executable, __file__, f"--seed={SEED.value}"]
        command.append(f"--worker={name},{found['next']},{n}")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        ) as worker:
            follow(worker, found, n)
        out.write_text(json.dumps(kept, indent=1))
    seconds = time.monotonic() - begun
    shown = ", ".join(f"{found.get(what, 0)} {what}" for what in OUTCOMES if found.get(what))
    print(f"{name}: {found['next']} inputs, {shown} ({seconds:.0f} s)", flush=True)


def follow(worker: subprocess.Popen, found: dict, n: int) -> None:
    """Note what a worker says of each input; of the input that it ends at, how it ended."""
    assert worker.stdout is not None
    while found["next"] < n:
        # The worker says when it is ready: until then it imports and makes the whole inputs.
        if not select.select([worker.stdout], [], [], DEAF_S + 120 * (found["next"] == 0))[0]:
            worker.kill()
            note(found, "SLOW", "deaf to its alarm")
            return
        line = worker.stdout.readline()
        if not line:
            note(found, "DIED", f"status {worker.wait()}")
            return
        said = json.loads(line)
        if said["outcome"] == "ready":
            continue
        if said["outcome"] == "restart":  # after much memory, say
            return
        note(found, said["outcome"], said["what"])


def note(found: dict, outcome: str, what: str) -> None:
    """Count an outcome, and keep the input's number where it is not right."""
    found[outcome] = found.get(outcome, 0) + 1
    if outcome not in ("accepted", "refused"):
        kinds = found.setdefault("kinds", {})
        kinds.setdefault(f"{outcome} {what.split(': ')[0]}", []).append(found["next"])
    found["next"] += 1


def work(name: str, first: int, end: int) -> None:
    """Try inputs, and say the outcome of each on a line."""
    from mutated_readers import readers

    # Whatever the readers print goes elsewhere.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    folder = Path(tempfile.mkdtemp(prefix="mutated-"))
    reader = readers()[name]
    make = reader.prepare(folder)
    answers.write(json.dumps({"outcome": "ready"}) + "\n")
    signal.signal(signal.SIGALRM, _too_slow)
    limit_memory()
    for i in range(first, end):
        outcome, what = try_input(make, name, i)
        answers.write(json.dumps({"outcome": outcome, "what": what}) + "\n")
        if outcome in ("MEMORY", "SLOW"):
            answers.write(json.dumps({"outcome": "restart"}) + "\n")
            return


def limit_memory() -> None:
    """Let the process have so much more address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _too_slow(*_) -> None:
    raise TooSlow


def try_input(make, name: str, i: int) -> tuple[str, str]:
    """Make an input and read it; return the outcome, and what was raised."""
    rng = random.Random(zlib.crc32(f"{SEED.value} {name} {i}".encode()))
    call, mention = make(rng)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            call()
        return "accepted", ""
    except TooSlow:
        return "SLOW", ""
    except MemoryError as error:
        return "MEMORY", f"{type(error).__name__} {_place(error)}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return judge(error, mention)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def judge(error: BaseException, mention: tuple[str, ...]) -> tuple[str, str]:
    """Tell a proper refusal from others.

    Args:
      error: what was raised.
      mention: a proper message holds one of these: the name of the file or folder, or of the flag.
    """
    what = f"{type(error).__name__} {_place(error)}: {str(error)[:120]}"
    if isinstance(error, flags.Error):  # absl prints it with the flag's name
        return "refused", what
    if not isinstance(error, ValueError | OSError):
        return "TRACEBACK", what
    if isinstance(error, OSError) and error.filename is not None:
        return "refused", what
    is_ours = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE)
    if (
        is_ours
        and type(error) in (ValueError, OSError)
        and any(name in str(error) for name in mention)
    ):
        return "refused", what
    return "UNCLEAR", what


def _place(error: BaseException) -> str:
    """Return the last line of the package that the error went through."""
    lines = traceback.extract_tb(error.__traceback__)
    ours = [line for line in lines if line.filename.startswith(PACKAGE)]
    if not ours:
        return "outside"
    return f"{ours[-1].filename.removeprefix(PACKAGE)}:{ours[-1].name}"


def show_one(name: str, i: int) -> None:
    """Make one input again and show what happens."""
    from mutated_readers import readers

    make = readers()[name].prepare(Path(tempfile.mkdtemp(prefix="mutated-")))
    rng = random.Random(zlib.crc32(f"{SEED.value} {name} {i}".encode()))
    call, mention = make(rng)
    print(f"a message should hold {mention!r}; returned {call()!r}")


def table(kept: dict) -> str:
    """Write the results as a Markdown table, and the kinds of what is not right."""
    rows = [f"seed {kept['seed']}", "", f"| reader | inputs | {' | '.join(OUTCOMES)} |"]
    rows.append("|---|" + "---:|" * (len(OUTCOMES) + 1))
    total: collections.Counter = collections.Counter()
    for name, found in kept["readers"].items():
        counts = [found["next"], *(found.get(what, 0) for what in OUTCOMES)]
        total.update(dict(enumerate(counts)))
        rows.append(f"| {name} | {' | '.join(map(str, counts))} |")
    rows.append(f"| all | {' | '.join(str(total[i]) for i in range(len(OUTCOMES) + 1))} |")
    for name, found in kept["readers"].items():
        for kind, inputs in found.get("kinds", {}).items():
            rows.append(f"{name} x{len(inputs)} (input {inputs[0]}): {kind}")
    return "\n".join(rows)


if __name__ == "__main__":
    app.run(main)
