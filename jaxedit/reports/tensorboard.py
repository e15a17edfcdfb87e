"""Watching a study while it runs: its numbers as TensorBoard events beside the journal, which is
JSON lines itself.
"""

from pathlib import Path
from typing import Any

# What of a record is shown, under which name.
SCALARS = {
    "perplexity/mean": ("perplexity", "mean"),
    "perplexity/ratio": ("perplexity", "ratio"),
    "perplexity/delta_nll_nats": ("perplexity", "delta_nll_nats"),
    "fact/probability_new": ("fact", "probability_new"),
    "fact/greedy_new": ("fact", "greedy_new"),
    "edit/norm": ("edit_norm",),
    "edit/relative_norm": ("relative_norm",),
    "edit/relative_perturbation": ("relative_perturbation",),
    "edit/relative_perturbation_of_all": ("relative_perturbation_of_all",),
    "edit/denominator": ("editor", "denominator"),
    "edit/loss": ("editor", "loss"),
    "model/divergence_nats": ("divergence_nats",),
    "model/fluency_bits": ("fluency_bits",),
    "model/consistency": ("consistency",),
    "time_s/edit": ("time_s", "edit"),
    "time_s/perplexity": ("time_s", "perplexity"),
}


class TensorBoardWriter:
    """Writes a study's steps to `FOLDER/events` as they come; `tensorboard --logdir=FOLDER` shows
    them.
    """

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "events for TensorBoard need tensorboardX: pip install 'jaxedit[live]'"
            ) from error
        # Nothing is written before there is a step: until then the folder may turn out to be
        # another study's. A study that goes on tells its steps again, so those of earlier files are
        # to be forgotten.
        self.make = lambda: SummaryWriter(str(folder / "events"), purge_step=0)
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.writer is not None:
            self.writer.close()

    def step(self, record: dict[str, Any]) -> None:
        """Writes one step's numbers, those of them that it has."""
        self.writer = self.writer or self.make()
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record by name; what is not finite as well."""
    found = {}
    for name, path in SCALARS.items():
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = float(value)
    return found
