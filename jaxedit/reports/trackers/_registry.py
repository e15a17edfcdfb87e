"""Trackers by their name, which is the name of a file in this folder."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from jaxedit.did_you_mean import did_you_mean
from jaxedit.reports.trackers._base import TrackedRun, Tracker


def tracker_names() -> list[str]:
    """List the trackers."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def check_tracker(name: str) -> None:
    """Check that a tracker is known and its package installed, without importing that.

    Raises:
      ValueError: where it is not.
    """
    if name not in tracker_names():
        raise ValueError(
            f"unknown tracker {name!r}{did_you_mean(name, tracker_names())} Trackers: "
            f"{', '.join(tracker_names())}"
        )
    package = _module(name).PACKAGE
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name here is no package
        raise ValueError(
            f"the tracker {name} needs {package}, which is not installed: "
            f"pip install 'jaxedit[{name}]'"
        )


def open_run(name: str, run: TrackedRun) -> Tracker:
    """Open a run with a tracker.

    Raises:
      ValueError: where the tracker refuses.
    """
    return _module(name).open_run(run)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"jaxedit.reports.trackers.{name}")
