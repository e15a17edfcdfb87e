"""A long study costs no more memory at its end than at its beginning."""

import tracemalloc

import jax
import numpy as np
import pytest
from study_examples import FACTS

from jaxedit.study import loop

N_EDITS = 60
N_WARM = 20  # edits after which everything is compiled
ALLOWED_BYTES = 2**18  # an edit; a leak of 1 MiB an edit has four times as much


@pytest.fixture
def growth_bytes(configure, tmp_path):
    """Make a function: (on_step) -> how many bytes more are held after an edit.

    What Python, NumPy and JAX hold is counted: the resident memory of a process that has done other
    things before has room for leaks.
    """
    facts = [FACTS[0] | {"case_id": number} for number in range(N_EDITS)]

    def measure(on_step=lambda: None) -> float:
        held_bytes = []

        def note(record, total):
            on_step()
            on_devices = sum(array.nbytes for array in jax.live_arrays())
            held_bytes.append(tracemalloc.get_traced_memory()[0] + on_devices)

        tracemalloc.start()
        try:
            loop.run_study(configure(facts), tmp_path / "run", note)
        finally:
            tracemalloc.stop()
        return (held_bytes[-1] - held_bytes[N_WARM]) / (N_EDITS - N_WARM)

    return measure


def test_memory_does_not_grow_with_the_number_of_edits(growth_bytes):
    assert growth_bytes() < ALLOWED_BYTES


@pytest.mark.parametrize("ones", [np.ones, jax.numpy.ones], ids=["host", "device"])
def test_a_leak_of_a_mebibyte_an_edit_is_seen(growth_bytes, ones):
    leaked = []
    assert growth_bytes(lambda: leaked.append(ones(2**18, np.float32))) > ALLOWED_BYTES
