"""A study's numbers in experiment trackers while it runs, beside its journal.

    WORKDIR/tracked.json    for each tracker: its name of the run, and the first step that it was
                            not given yet

A study that goes on tells all its steps again; a tracker is not given a step twice, and one that is
first named when a study goes on, or has ended, is given all of them.
"""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxedit.files import read_json, write_atomic
from jaxedit.reports.trackers import TrackedRun, Tracker, check_tracker, open_run
from jaxedit.study.record import StepRecord

# Name shown -> where the number is in a record.
SCALARS = {
    "perplexity/mean": ("perplexity", "mean"),
    "perplexity/ratio": ("perplexity", "ratio"),
    "perplexity/delta_nll_nats": ("perplexity", "delta_nll_nats"),
    "metrics/probability_new": ("metrics", "probability_new"),
    "metrics/efficacy_accuracy": ("metrics", "efficacy_accuracy"),
    "edit/norm": ("edit_norm",),
    "edit/norm_ratio": ("edit_norm_ratio",),
    "edit/relative_perturbation": ("relative_perturbation",),
    "edit/total_relative_perturbation": ("total_relative_perturbation",),
    "edit/denominator": ("optimisation", "denominator"),
    "edit/loss": ("optimisation", "loss"),
    "model/kl_nats": ("kl_nats",),
    "model/ngram_entropy_bits": ("ngram_entropy_bits",),
    "model/reference_score": ("reference_score",),
    "generated/efficacy_contains": ("generated_metrics", "generated_efficacy_contains"),
    "generated/efficacy_exact": ("generated_metrics", "generated_efficacy_exact"),
    "time_s/edit": ("time_s", "edit"),
    "time_s/perplexity": ("time_s", "perplexity"),
}


class StudyTracking:
    """Write a study's steps to trackers.

    Raises:
      ValueError: on an unknown tracker, or one whose package is not installed.
    """

    def __init__(self, trackers: Sequence[str], name: str, folder: Path, config: Mapping[str, Any]):
        for tracker in trackers:
            check_tracker(tracker)
        self.trackers = list(dict.fromkeys(trackers))
        self.name, self.folder, self.config = name, folder, config
        self.open: dict[str, Tracker] = {}
        self.next_step: dict[str, int] = {}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "StudyTracking":
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def write_step(self, record: StepRecord) -> None:
        """Give one step's numbers, those that it has, to each tracker that was not given them.

        Raises:
          ValueError, OSError: as `write_numbers`.
        """
        self.write_numbers(record.step, scalars(record))

    def write_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Give numbers to each tracker that was not given this step.

        Args:
          step: which number of the study (or of a training) they are of.
          numbers: by the name they are shown under.

        Raises:
          ValueError: where a tracker does not begin, at the first step.
          OSError: where one does not take the numbers.
        """
        # Nothing is begun before there is a step: until then the folder may turn out to be another
        # study's.
        if not self.open:
            self._open_runs()
        for tracker in self.trackers:
            if step < self.next_step[tracker]:
                continue
            if numbers:
                self.open[tracker].write_step(step, numbers)
            self.next_step[tracker] = step + 1
            self._write_state()

    def _open_runs(self) -> None:
        """Open the trackers' runs, those that the work directory knows or new ones."""
        known = self._read_state()
        for tracker in self.trackers:
            run_id, next_step = known.get(tracker, (None, 0))
            run = TrackedRun(self.name, self.folder, self.config, run_id, next_step)
            opened = self.open[tracker] = open_run(tracker, run)
            self.next_step[tracker] = opened.next_step
            self.stack.push(lambda kind, *_, opened=opened: opened.close(kind is None))
        self._write_state()

    def _read_state(self) -> dict[str, tuple[str, int]]:
        path = self.folder / "tracked.json"
        if not path.is_file():
            return {}
        try:
            state = read_json(path)
            runs = {tracker: (run["run_id"], run["next_step"]) for tracker, run in state.items()}
            if all(isinstance(id, str) and type(step) is int for id, step in runs.values()):
                return runs
        except (ValueError, KeyError, TypeError):
            pass
        logging.getLogger("jaxedit").warning(
            "%s cannot be read: the trackers get all steps anew, in new runs", path
        )
        return {}

    def _write_state(self) -> None:
        """Write which runs there are, and what they have; those of trackers not named now stay."""
        state = {
            tracker: {"run_id": run_id, "next_step": next_step}
            for tracker, (run_id, next_step) in self._read_state().items()
        }
        for tracker, opened in self.open.items():
            state[tracker] = {"run_id": opened.run_id, "next_step": self.next_step[tracker]}
        write_atomic(self.folder / "tracked.json", (json.dumps(state, indent=2) + "\n").encode())


def scalars(record: StepRecord) -> dict[str, float]:
    """Return the numbers of a record by the name they are shown under."""
    found = {}
    for name, (field, *keys) in SCALARS.items():
        value: Any = getattr(record, field)
        for key in keys:
            value = None if value is None else value.get(key)
        if value is not None:
            found[name] = float(value)
    return found
