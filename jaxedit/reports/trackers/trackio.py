"""Trackio: a run in its local store, or on a server of yours. `trackio show` shows them.

Its own settings hold: TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL and the others.
"""

import contextlib
import importlib
import secrets
import sys
from collections.abc import Mapping
from typing import Any

from jaxedit.reports.trackers._base import PROJECT, TrackedRun

PACKAGE = "trackio"


class TrackioTracker:
    """A run of Trackio, which knows runs by their names: this one's ends in a few letters."""

    def __init__(self, run: TrackedRun):
        # By its name, since the package is not one of those that the tests install.
        trackio: Any = importlib.import_module(PACKAGE)
        self.run_id = run.run_id or f"{run.name}-{secrets.token_hex(3)}"
        self.next_step = run.next_step
        with contextlib.redirect_stdout(sys.stderr):  # it greets, and output is the command's own
            self.run = trackio.init(
                project=PROJECT, name=self.run_id, config=dict(run.config), resume="allow"
            )

    def write_step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write one step's numbers."""
        self.run.log(dict(numbers), step=step)

    def close(self, is_complete: bool) -> None:
        """Wait until all is written or sent."""
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


open_run = TrackioTracker
