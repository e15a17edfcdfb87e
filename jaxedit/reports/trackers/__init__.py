"""Experiment trackers, one file each: where a study's numbers go while it runs.

The file name is the tracker's name. A file offers

    PACKAGE     the package that it imports
    open_run    (run: TrackedRun) -> Tracker; ValueError where the tracker refuses

Where a run is kept, and under which project, is left to the tracker's own settings. Files whose
name begins with an underscore are no trackers.
"""

from jaxedit.reports.trackers._base import TrackedRun, Tracker
from jaxedit.reports.trackers._registry import check_tracker, open_run, tracker_names

__all__ = ["TrackedRun", "Tracker", "check_tracker", "open_run", "tracker_names"]
