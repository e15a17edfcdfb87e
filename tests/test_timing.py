"""Seconds are the least of some runs, taken in turn; the matmul rate is the machine's."""

import types

import jax.numpy as jnp
import pytest

from jaxedit import timing


class Clock:
    """A clock that only goes on where a run says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def timed_run(clock: Clock, calls: list[str], name: str, seconds: list[float]):
    """A run that takes so many seconds the first time, the second time, ..."""
    remaining = iter(seconds)

    def run():
        calls.append(name)
        clock.now += next(remaining)

    return run


def test_the_least_seconds_are_those_of_each_run_without_its_first(clock):
    calls = []
    slow = timed_run(clock, calls, "slow", [1.0, 9.0, 7.0, 8.0])  # the first is not counted
    fast = timed_run(clock, calls, "fast", [50.0, 2.0, 3.0, 4.0])
    assert timing.least_seconds([slow, fast]) == [7.0, 2.0]
    assert calls == ["slow", "fast"] * 4


def test_the_number_of_repeats_is_as_asked(clock):
    calls = []
    assert timing.seconds(timed_run(clock, calls, "", [5.0, 4.0, 3.0, 2.0]), repeats=1) == 4.0
    assert len(calls) == 2


def test_the_matmul_rate_is_flops_a_second(monkeypatch):
    """A product of n x n matrices is 2 n^3 FLOPs; on a CPU the faster of jax and numpy counts."""
    taken = iter([0.5, 0.25])
    monkeypatch.setattr(timing, "seconds", lambda run, repeats: next(taken))
    rate, width = timing.matmul_rate(jnp.dtype("float32"))
    assert rate == 2 * width**3 / 0.25
    assert list(taken) == []


def test_the_memory_rate_is_bytes_read_and_written_a_second(monkeypatch):
    """An array goes through a program that adds to it: each number is read once, written once."""
    read = []

    def take_half_a_second(run, repeats):
        read.append(run().nbytes)
        return 0.5

    monkeypatch.setattr(timing, "seconds", take_half_a_second)
    assert timing.memory_rate() == 2 * read[0] / 0.5


def test_the_peak_is_that_of_this_process():
    before = timing.peak_bytes()
    held = jnp.ones((256, 2**20), jnp.uint8).block_until_ready()  # 256 MiB
    assert 1e7 < before <= timing.peak_bytes()
    assert timing.peak_bytes() > held.nbytes
