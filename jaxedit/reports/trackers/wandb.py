"""Weights & Biases: a run online, or with WANDB_MODE=offline below the work directory.

Its own settings hold: WANDB_MODE, WANDB_ENTITY, WANDB_PROJECT, WANDB_DIR and the others.
"""

import os
from collections.abc import Mapping

from jaxedit.reports.trackers._base import PROJECT, TrackedRun

PACKAGE = "wandb"


class WandbTracker:
    """A run of W&B.

    Raises:
      ValueError: where there is no login, or no connection.
    """

    def __init__(self, run: TrackedRun):
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=run.name,
                id=run.run_id,
                resume="allow" if run.run_id else None,
                dir=os.environ.get("WANDB_DIR", str(run.folder)),
                settings=wandb.Settings(console="off"),  # output stays the command's own
            )
        except wandb.Error as error:
            raise ValueError(
                f"wandb did not begin a run ({error}); log in by `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        # A study that goes on may ask for more facts than before.
        self.run.config.update(dict(run.config), allow_val_change=True)
        self.run_id, self.next_step = str(self.run.id), run.next_step

    def write_step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write one step's numbers."""
        self.run.log(dict(numbers), step=step, commit=True)

    def close(self, is_complete: bool) -> None:
        """Wait until all is written or sent."""
        self.run.finish(exit_code=0 if is_complete else 1)


open_run = WandbTracker
