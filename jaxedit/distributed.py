"""Several processes of one run: joining them, agreeing, and a work directory for each.

The processes of a run make the same steps, and the first one's work directory is the study's. Each
other process keeps a temporary one that begins as a copy, so that it resumes from the same step
wherever it runs: no file system need be shared.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from jaxedit.files import exclusive_lock, exclusive_target, parse_json, write_atomic
from jaxedit.messages import first_line
from jaxedit.rounding import ceil_div, next_power_of_two, read_whole_number


def start_processes(
    coordinator: str | None = None, n_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of a run; to be called before anything else of JAX.

    Args:
      coordinator: HOST:PORT of process 0; absent: JAX finds the others (TPU pods, Slurm, Open MPI).
      n_processes: how many there are.
      process_id: which of them this is.

    Raises:
      ValueError: where only some of the three are given, or the others cannot be found or reached.
    """
    given = {"coordinator": coordinator, "num_processes": n_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(
            f"{', '.join(missing)} missing: "
            "give --coordinator=HOST:PORT, --num_processes and --process_id together"
        )
    try:
        jax.distributed.initialize(coordinator, n_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "the processes of this run did not find each other "
            f"({first_line(error)}); outside of TPU pods and Slurm "
            "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I"
        ) from error


def is_multiprocess() -> bool:
    """Return whether the environment says that this is one of several processes.

    It may be a process of a Slurm step, or of a TPU slice.
    """
    n_tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return (
        (read_whole_number(n_tasks) or 1) > 1
        or "," in workers
        or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
    )


def is_first_process() -> bool:
    """Return whether this is the process that prints and writes."""
    return jax.process_index() == 0


def broadcast_flag(choice: bool) -> bool:
    """Return the first process's choice in all processes, for what a clock or a disk decides."""
    if jax.process_count() == 1:
        return choice
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(choice)))


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """Return the sum of every process's float64 array, the same in all of them."""
    if jax.process_count() == 1:
        return array
    from jax.experimental import multihost_utils

    # As halves, since JAX would round float64 to float32.
    halves = np.ascontiguousarray(array, np.float64).view(np.uint32)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(halves))
    return np.sum(gathered.view(np.float64), axis=0)


@contextlib.contextmanager
def own_workdir(folder: Path) -> Iterator[None]:
    """Own this process's work directory; where the first process's is taken, none has its own.

    Raises:
      ValueError: where another process owns it, in all processes of the run.
    """
    with _own(exclusive_lock(folder), f"its work directory {folder}"):
        yield


@contextlib.contextmanager
def own_target(path: Path) -> Iterator[None]:
    """Own the name of what the first process of a run writes, for all of its processes.

    Raises:
      ValueError: where another process writes it, in all processes of the run.
    """
    mine = exclusive_target(path) if is_first_process() else contextlib.nullcontext()
    with _own(mine, str(path)):
        yield


@contextlib.contextmanager
def _own(lock: contextlib.AbstractContextManager[None], what: str) -> Iterator[None]:
    """Hold a lock, unless the first process is refused its own: then no process goes on.

    Else the others would wait for ever for what it does not compute.

    Raises:
      ValueError: where this process or the first one is refused.
      OSError: where it cannot write there.
    """
    refusal = None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except (ValueError, OSError) as error:
            refusal = error
        if not broadcast_flag(refusal is None):
            raise refusal or ValueError(f"the first process of this run does not own {what}")
        if refusal is not None:
            raise refusal
        yield


def check_first_has(number: int, what: str) -> None:
    """Check that the first process has the same number as this one.

    Args:
      number: of this process.
      what: differs where the numbers do, for the message.

    Raises:
      ValueError: where it has another.
    """
    if jax.process_count() > 1 and _broadcast_int(number) != number:
        raise ValueError(f"{what}: run the same command again")


def map_over_processes(items: list, work: Callable[[list], list[np.ndarray]]) -> list[np.ndarray]:
    """Map `work` over items, each process a share of them, and gather all results in all processes.

    Args:
      items: the same in every process.
      work: makes one array of integers, of any length, of each of a list of items.
    """
    n_processes = jax.process_count()
    # Items are dealt out in turn: process p has items p, p + n_processes, ...
    own_results = work(items[jax.process_index() :: n_processes])
    if n_processes == 1:
        return own_results
    from jax.experimental import multihost_utils

    # Lengths first: how many integers each result of each process has. The last processes may have
    # one item less, whose length stays 0.
    own_sizes = np.zeros(ceil_div(len(items), n_processes), np.int32)
    own_sizes[: len(own_results)] = [len(result) for result in own_results]
    sizes = np.asarray(multihost_utils.process_allgather(own_sizes))

    # Then the integers, one result after the other, padded to one length for all processes: a power
    # of two, as each length is compiled for.
    longest = int(sizes.sum(1).max())
    own_integers = np.zeros(next_power_of_two(longest + 1), np.int32)
    own_integers[: own_sizes.sum()] = np.concatenate([own_integers[:0], *own_results])
    integers = np.asarray(multihost_utils.process_allgather(own_integers))

    shares = [
        np.split(flat, np.cumsum(lengths)) for flat, lengths in zip(integers, sizes, strict=True)
    ]
    return [shares[i % n_processes][i // n_processes] for i in range(len(items))]


def process_workdir(folder: Path) -> Path:
    """Return a work directory for this process, with the files of the first process's.

    It is the folder itself in the first process (or the only one), a temporary one in the others.
    """
    if jax.process_count() == 1:
        return folder
    is_first = is_first_process()
    own_folder = folder if is_first else Path(tempfile.mkdtemp(prefix="jaxedit-"))
    files: list[Path] = []
    if is_first and folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
    # The first process tells the others the files' names and sizes, then their content.
    listing = [[str(path.relative_to(folder)), path.stat().st_size] for path in files]
    encoded = json.dumps(listing).encode()
    content = _broadcast_bytes(encoded, _broadcast_int(len(encoded)))
    names = parse_json(content, "the first process's list of files", list)
    for i, (name, n_bytes) in enumerate(names):
        content = _broadcast_bytes(files[i].read_bytes() if is_first else b"", n_bytes)
        if not is_first:
            write_atomic(own_folder / name, content)
    return own_folder


def _broadcast_bytes(content: bytes, n_bytes: int) -> bytes:
    """Return the first process's bytes, whose number every process knows."""
    from jax.experimental import multihost_utils

    own_bytes = np.zeros(n_bytes, np.uint8)
    if is_first_process():
        own_bytes = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own_bytes), np.uint8).tobytes()


def _broadcast_int(number: int) -> int:
    """Return the first process's number."""
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
