"""A study's numbers in Trackio's local store: interrupted, gone on with, and read back.

    pip install 'jaxedit[trackio]'
    PYTHONPATH=tests python tests/big/trackio_runs.py FOLDER

Not a test, since Trackio cannot be installed beside what the tests are run with: it asks for
pillow < 13, they are run with 13 too. FOLDER is new; store and work directory are made in it.
With trackio 0.43.0 it prints, in four seconds:

    52 numbers of 8 steps, each once, in one run of Trackio
"""

import math
import os
import sys
from collections import Counter
from pathlib import Path

from journals import STEPS, baseline
from tracked_runs import read_trackio

from jaxedit.reports.tracking import StudyTracking, scalars

CONFIG = {"model": "tiny", "editor": {"method": "rome", "v_lr": 0.5}}


def main(folder: Path) -> None:
    """Track four steps, then all seven in a session that goes on; compare with the records."""
    folder.mkdir()
    os.environ["TRACKIO_DIR"] = str(folder / "store")
    records = [baseline(), *STEPS]
    for n_steps in (4, len(records)):
        with StudyTracking(["trackio"], "run", folder / "run", CONFIG) as tracking:
            for record in records[:n_steps]:
                tracking.write_step(record)

    # Each number once, and in one run.
    found = read_trackio(folder / "store")
    expected = {(r.step, name): n for r in records for name, n in scalars(r).items()}
    assert Counter((step, name) for step, name, _ in found.values) == Counter(expected.keys())
    for step, name, value in found.values:
        assert value == expected[step, name] or math.isnan(value), (step, name)
    assert len(found.ids) == 1
    assert {key: found.config[key] for key in CONFIG} == CONFIG
    print(f"{len(found.values)} numbers of {len(records)} steps, each once, in one run of Trackio")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
