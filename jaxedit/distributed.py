"""Several processes of one run: joining them, what they agree on, and a work directory for each.

The processes of a run make the same steps, and the first one's folder is the study's. Each other
process keeps a folder of its own that begins as a copy, so that it goes on from the same step,
wherever it runs: no file system need be shared."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np


def start_processes(
    coordinator: str | None = None, n_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of a run; call it before anything else of JAX.

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
            f"{', '.join(missing)} missing: give --coordinator=HOST:PORT, --num_processes and --process_id together"
        )
    try:
        jax.distributed.initialize(coordinator, n_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes of this run did not find each other ({str(error).splitlines()[0]}); outside of TPU pods and Slurm "
            "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I"
        ) from error


def is_multiprocess() -> bool:
    """Whether the environment says that this is one of several processes: of a Slurm step, or of a
    TPU slice.
    """
    n_tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return (
        (n_tasks.isdigit() and int(n_tasks) > 1)
        or "," in workers
        or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
    )


def broadcast_flag(choice: bool) -> bool:
    """The first process's choice, in all of them: for what a clock decides."""
    if jax.process_count() == 1:
        return choice
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(choice)))


def map_over_processes(items: list, work: Callable[[list], list[np.ndarray]]) -> list[np.ndarray]:
    """The integers [*] that `work` makes of each item: every process works on a share, and all get
    everything.
    """
    n = jax.process_count()
    mine = work(items[jax.process_index() :: n])
    if n == 1:
        return mine
    from jax.experimental import multihost_utils

    size_I = np.zeros(-(-len(items) // n), np.int32)  # the last processes may have one item less
    size_I[: len(mine)] = [len(row) for row in mine]
    size_PI = np.asarray(multihost_utils.process_allgather(size_I))
    flat_T = np.zeros(
        1 << int(size_PI.sum(1).max()).bit_length(), np.int32
    )  # few lengths, as each is compiled for
    flat_T[: size_I.sum()] = np.concatenate([flat_T[:0], *mine])
    flat_PT = np.asarray(multihost_utils.process_allgather(flat_T))
    shares = [
        np.split(all_T, np.cumsum(size)) for all_T, size in zip(flat_PT, size_PI, strict=True)
    ]
    return [shares[i % n][i // n] for i in range(len(items))]


def process_workdir(folder: Path) -> Path:
    """The folder itself in the first process (or the only one); in the others a temporary one with
    the same files.
    """
    if jax.process_count() == 1:
        return folder
    is_first = jax.process_index() == 0
    mine = folder if is_first else Path(tempfile.mkdtemp(prefix="jaxedit-"))
    files = (
        sorted(path for path in folder.rglob("*") if path.is_file())
        if is_first and folder.is_dir()
        else []
    )
    listing = json.dumps(
        [[str(path.relative_to(folder)), path.stat().st_size] for path in files]
    ).encode()
    names = json.loads(_broadcast_bytes(listing, _broadcast_int(len(listing))))
    for i, (name, n_bytes) in enumerate(names):
        content = _broadcast_bytes(files[i].read_bytes() if is_first else b"", n_bytes)
        if not is_first:
            (mine / name).parent.mkdir(parents=True, exist_ok=True)
            (mine / name).write_bytes(content)
    return mine


def _broadcast_bytes(content: bytes, n_bytes: int) -> bytes:
    """The first process's bytes, whose number all know."""
    from jax.experimental import multihost_utils

    mine = (
        np.frombuffer(content, np.uint8)
        if jax.process_index() == 0
        else np.zeros(n_bytes, np.uint8)
    )
    return np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8).tobytes()


def _broadcast_int(number: int) -> int:
    """The first process's number."""
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def is_first_process() -> bool:
    """Whether this is the process that prints and writes."""
    import jax

    return jax.process_index() == 0
