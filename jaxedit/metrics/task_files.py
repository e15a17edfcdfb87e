"""The files that lm-eval writes of an evaluation, by its own `EvaluationTracker`.

    FOLDER/MODEL/results_DATE.json            settings, metrics and versions
    FOLDER/MODEL/samples_TASK_DATE.jsonl      where asked for: each item, prompt and answer

The tracker only logs what it could not write; here that is an error.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.loggers import EvaluationTracker


def check_output(output_path: Path | None, log_samples: bool) -> None:
    """Check that lm-eval's files can be written, which it says nothing of; make the folder.

    Raises:
      ValueError: where they cannot, or samples are to be logged and there is no folder for them.
    """
    if output_path is None:
        if log_samples:
            raise ValueError("log_samples writes files: give an output_path for them, too")
        return
    folder = _folder_of(output_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"output_path={output_path}: no files can be written there ({error.strerror}); give a "
            "folder in which they can"
        ) from error


def write_files(tracker: "EvaluationTracker", found: dict[str, Any], output_path: Path) -> None:
    """Have lm-eval write its files.

    Args:
      tracker: lm-eval's.
      found: lm-eval's results, with samples or without.
      output_path: as the tracker has it.

    Raises:
      OSError: where they are not whole; the tracker says that in a log only.
    """
    folder = _folder_of(output_path)
    samples = found.pop("samples", {})
    tracker.save_results_aggregated(results=found, samples=samples or None)
    for task, items in samples.items():
        tracker.save_results_samples(task_name=task, samples=items)

    # One line an item, and one file of results.
    stamp = getattr(tracker, "date_id", None)  # of this evaluation's files
    written = sorted(folder.rglob(f"*_{stamp}.json*")) if stamp else []
    n_lines = sum(path.read_bytes().count(b"\n") for path in written if path.suffix == ".jsonl")
    n_items = sum(map(len, samples.values()))
    if len(written) != 1 + len(samples) or n_lines != n_items:
        raise OSError(
            f"lm-eval could not write its files to {folder} ({len(written)} of "
            f"{1 + len(samples)} files, {n_lines} of {n_items} samples): is there room?"
        )


def _folder_of(output_path: Path) -> Path:
    return output_path.parent if output_path.suffix == ".json" else output_path
