"""TensorBoard: events in the work directory. `tensorboard --logdir=WORKDIR` shows them."""

from collections.abc import Mapping

from jaxedit.reports.trackers._base import TrackedRun

PACKAGE = "tensorboardX"


class TensorBoardTracker:
    """Events in WORKDIR/events."""

    run_id = "events"
    next_step = 0

    def __init__(self, run: TrackedRun):
        from tensorboardX import SummaryWriter

        # A study that is killed loses its last events. So one that goes on gives all its steps
        # again, and TensorBoard is told to forget those of earlier files.
        self.writer = SummaryWriter(str(run.folder / self.run_id), purge_step=0)

    def write_step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write one step's numbers."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, is_complete: bool) -> None:
        """Close the file."""
        self.writer.close()


open_run = TensorBoardTracker
