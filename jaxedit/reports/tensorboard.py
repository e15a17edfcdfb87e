"""A study's numbers as TensorBoard events while it runs, beside its journal."""

from pathlib import Path
from typing import Any

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
    "time_s/edit": ("time_s", "edit"),
    "time_s/perplexity": ("time_s", "perplexity"),
}


class TensorBoardWriter:
    """Write a study's steps to `FOLDER/events`; `tensorboard --logdir=FOLDER` shows them.

    Raises:
      ValueError: where tensorboardX is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "events for TensorBoard need tensorboardX: pip install 'jaxedit[live]'"
            ) from error
        # Nothing is written before there is a step: until then the folder may turn out to be
        # another study's. A study that goes on tells its steps again, so those of earlier files
        # are to be forgotten.
        self.make = lambda: SummaryWriter(str(folder / "events"), purge_step=0)
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.writer is not None:
            self.writer.close()

    def write_step(self, record: StepRecord) -> None:
        """Write one step's numbers, those of them that it has."""
        self.writer = self.writer or self.make()
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record.step)
        self.writer.flush()


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
