"""What a tracker is given, and what it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

PROJECT = "jaxedit"  # unless the tracker's own settings name another


class TrackedRun(NamedTuple):
    """A study, as a tracker sees it.

    Attributes:
      name: to be shown.
      folder: the work directory.
      config: the study's configuration, nested.
      run_id: the tracker's own name of a run that goes on; None: a new run.
      next_step: the first step that the tracker was not given yet.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    run_id: str | None
    next_step: int


class Tracker(Protocol):
    """An open run.

    Attributes:
      run_id: the tracker's own name of it, by which a study that goes on finds it again.
      next_step: the first step that it is to be given.
    """

    run_id: str
    next_step: int

    def write_step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write one step's numbers.

        Raises:
          OSError: where the tracker does not take them.
        """
        ...

    def close(self, is_complete: bool) -> None:
        """End the run; say whether the study came to its end, too."""
        ...
