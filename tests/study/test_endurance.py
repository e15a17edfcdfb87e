"""A long study costs no more memory at its end than at its beginning."""

import numpy as np
import psutil
import pytest
from study_examples import FACTS

from jaxedit.study import loop

N_EDITS = 60
N_WARM = 20  # edits after which everything is compiled
ALLOWED_BYTES = 2**18  # an edit; a leak of 1 MiB an edit has four times as much


@pytest.fixture
def growth_bytes(configure, tmp_path):
    """Make a function: (on_step) -> how much the resident memory grows by an edit, in bytes."""
    facts = [FACTS[0] | {"case_id": number} for number in range(N_EDITS)]

    def measure(on_step=lambda: None) -> float:
        resident_bytes = []

        def note(record, total):
            on_step()
            resident_bytes.append(psutil.Process().memory_info().rss)

        loop.run_study(configure(facts), tmp_path / "run", note)
        grown = resident_bytes[-1] - resident_bytes[N_WARM]
        return grown / (N_EDITS - N_WARM)

    return measure


def test_memory_does_not_grow_with_the_number_of_edits(growth_bytes):
    assert growth_bytes() < ALLOWED_BYTES


def test_a_leak_of_a_mebibyte_an_edit_is_seen(growth_bytes):
    leaked = []
    assert growth_bytes(lambda: leaked.append(np.ones(2**17))) > ALLOWED_BYTES
