"""Measure this machine: seconds of a function, its rates, its memory and the most used so far."""

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CONTAINER_BYTES = Path("/sys/fs/cgroup/memory.max")  # of Linux; "max": no limit


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Return the least seconds of some runs after a first one, which may compile."""
    return least_seconds([run], repeats)[0]


def least_seconds(runs: Sequence[Callable[[], Any]], repeats: int = 3) -> list[float]:
    """Return the least seconds of each of several runs after a first round, which may compile.

    They run in turn, so that a machine that slows down does so for all of them. A run counts until
    the arrays that it returns are ready."""
    times = np.empty((repeats + 1, len(runs)))
    for row in times:
        for i, run in enumerate(runs):
            began = time.perf_counter()
            jax.block_until_ready(run())
            row[i] = time.perf_counter() - began
    return times[1:].min(axis=0).tolist()


def matmul_rate(dtype: jnp.dtype) -> tuple[float, int]:
    """Measure the FLOPs a second of a product of square matrices, and return their width too.

    On a CPU the rate is the better one of jax and numpy."""
    on_cpu = jax.default_backend() == "cpu"
    width = 2048 if on_cpu else 8192
    # Not ones: chips multiply those faster.
    square = jax.random.normal(jax.random.key(0), (width, width), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    times = [seconds(lambda: multiply(square), repeats=8)]
    if on_cpu:
        host = np.asarray(square, np.float32)
        times.append(seconds(lambda: host @ host, repeats=8))
    return 2 * width**3 / min(times), width


def memory_rate() -> float:
    """Measure the bytes a second that the device reads and writes, of an array far over its caches.

    On a CPU all cores share it."""
    n_bytes = 2**28 if jax.default_backend() == "cpu" else 2**31
    array = jnp.zeros(n_bytes // 4, jnp.float32)
    add = jax.jit(lambda a: a + 1)
    return 2 * n_bytes / seconds(lambda: add(array), repeats=8)


def peak_bytes() -> int:
    """Return the most memory so far: the device's where it says so, else the process's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def host_bytes() -> int:
    """Return how much memory this machine has, or the container that this process runs in."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CONTAINER_BYTES.read_text().strip() if CONTAINER_BYTES.is_file() else ""
    return min(physical, int(limit)) if limit.isdecimal() else physical
