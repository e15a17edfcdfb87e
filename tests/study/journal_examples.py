"""What tests of the journal share: a run's keys, edits of every kind, filled folders."""

from pathlib import Path

import numpy as np

from jaxedit import Dense, LowRank
from jaxedit.edits.edit import Edit, edit_to_arrays
from jaxedit.study.journal import open_journal
from jaxedit.study.record import StepRecord

RUN = {
    "config": {"model": "tiny", "n_facts": 2, "editor": {"v_lr": 0.5, "layers": (1, 2)}},
    "facts_sha256": "abc",
}
LAYOUT = {"mlp/w_down": ("model.layers.{l}.mlp.down_proj.weight", "D F -> F D")}


def drawn_edit(seed: int = 0) -> Edit:
    """Draw deltas of both kinds and memory of several dtypes and ranks; no number is round."""
    rng = np.random.default_rng(seed)
    deltas = (
        LowRank(
            "mlp/w_down",
            2,
            rng.standard_normal((6, 2), np.float32),
            rng.standard_normal((2, 4), np.float32),
        ),
        Dense("mlp/w_down", 3, np.asfortranarray(rng.standard_normal((6, 4), np.float32))),
        LowRank(
            "mlp/w_down",
            5,
            np.full((6, 1), np.nan, np.float32),
            np.full((1, 4), -np.inf, np.float32),
        ),
    )
    memory = {
        "keys": rng.standard_normal((3, 6)),
        "tokens": np.arange(4),
        "scale": np.array(0.1, np.float32),
    }
    return Edit(deltas, memory, LAYOUT)


def assert_same_array(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def step(number: int) -> StepRecord:
    return StepRecord(step=number, subject="Zürich | 東京\n", kept=number % 2 == 1)


def filled(folder: Path, n_steps: int = 3, run=RUN):
    """Write a journal with this many steps; return it opened anew."""
    journal = open_journal(folder, run)
    for number in range(n_steps):
        journal.append(step(number), *edit_to_arrays(drawn_edit(number)))
    return open_journal(folder, run)
