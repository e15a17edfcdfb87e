"""Train MEND's network, which `editor.method=mend` then edits with.

    jaxedit train-mend --config=mend:smollm2-135m --set=facts='["zsre_mend_train.json"]'
    jaxedit train-mend --config=mend:gpt-j-6b --set=facts='["zsre_mend_train.json"]' \\
        --set=mesh=data:8 --workdir=runs/mend-gpt-j
    jaxedit edit --method=mend --set=editor.network=runs/mend-smollm2-135m/network.safetensors

The records need a neighbour with its answer: ZsRE in MEND's form has a question out of Natural
Questions, CounterFact neighbourhood prompts. The first `n_train` of each source are trained with,
the `n_validate` after them decide when to stop, and which network is kept.

A line for each validation: single edits of its records, the share of them whose new answer decoding
gives (success), KL on the neighbours, and by how much an edit raises their perplexity (drawdown).
An interrupted training goes on with the same command, with the same bits as if it had not been.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from jaxedit.cli._flags import (
    FLAGS,
    apply_set,
    config_flag,
    json_flag,
    path_flag,
    process_flags,
    set_flag,
)
from jaxedit.cli._output import print_json, results_console
from jaxedit.distributed import is_first_process
from jaxedit.files import exclusive_lock

if TYPE_CHECKING:
    from jaxedit.mend.progress import Progress
    from jaxedit.reports.tracking import StudyTracking


def define_flags() -> None:
    """Define the flags of this command."""
    config_flag("mend")
    set_flag()
    path_flag("workdir", None, "where checkpoints and network go; runs/NAME OF THE CONFIGURATION")
    flags.DEFINE_list(
        "track", [], "experiment trackers that get each validation's numbers, as of `jaxedit study`"
    )
    process_flags()
    json_flag()


def main() -> None:
    """Train, with a line for each validation."""
    from jaxedit.reports.tracking import StudyTracking
    from jaxedit.study.config import split_argument
    from jaxedit.study.mirror import local_workdir

    config = FLAGS.config
    apply_set(config)
    path, argument = split_argument(config_flags.get_config_filename(flags.FLAGS["config"]))
    workdir = FLAGS.workdir or f"runs/{path.stem}{'-' + argument if argument else ''}"
    with local_workdir(workdir) as folder, _owned(folder):
        tracking = StudyTracking(FLAGS.track, folder.resolve().name, folder, config.to_dict())
        with tracking:
            progress = train_in(folder, config.to_dict(), tracking)
    best, network = progress.best, folder / "network.safetensors"
    if FLAGS.json:
        print_json(
            {
                "workdir": str(folder),
                "network": str(network),
                "best": best._asdict(),
                "validations": [each._asdict() for each in progress.validations],
            }
        )
        return
    print(f"network: {network}, after {best.iteration:,} edits of {progress.iteration:,}")


def _owned(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Own the work directory, which the first process writes to."""
    return exclusive_lock(folder) if is_first_process() else contextlib.nullcontext()


def train_in(folder: Path, config: dict[str, Any], tracking: "StudyTracking") -> "Progress":
    """Train as a configuration says; return where it ended.

    Args:
      folder: of the training.
      config: as `jaxedit.mend.training_config.default_config`.
      tracking: gets the numbers of each validation.
    """
    from jaxedit.datasets import read_requests
    from jaxedit.mend.data import make_data
    from jaxedit.mend.network import make_layout
    from jaxedit.mend.places import mlp_places, weight_sizes
    from jaxedit.mend.train import train
    from jaxedit.mend.training_config import training_of
    from jaxedit.models.load import load

    training, switches = training_of(config)
    sources = [read_requests(source).requests for source in config["facts"]]
    model = load(config["model"], mesh=config["mesh"], dtype=config["dtype"])
    layers = config["layers"] or range(max(0, model.config.L - 3), model.config.L)
    layout = make_layout(switches, mlp_places(model, layers), weight_sizes(model))
    data = make_data(model, sources, config, layout)
    with TrainingBar(training.max_iters) as bar:

        def show(progress: "Progress") -> None:
            bar.show(progress)
            if FLAGS.track and progress.is_validated and is_first_process():
                last = progress.validations[-1]._asdict()
                numbers = {
                    f"mend/{name}": value for name, value in last.items() if value is not None
                }
                tracking.write_numbers(progress.iteration, numbers)

        return train(data, layout, training, folder, show)


class TrainingBar:
    """A progress bar on standard error, with a line for each validation."""

    def __init__(self, total: int):
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        text = TextColumn("{task.description}")
        columns = text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        console = results_console(stderr=True, quiet=not is_first_process())
        self.bar = Progress(*columns, console=console)
        self.task = self.bar.add_task("edits", total=total)
        self.n_shown = 0

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar.live.is_started:
            self.bar.stop()

    def show(self, progress: "Progress") -> None:
        """Show how far a training has come, and a validation that was not shown yet."""
        self.bar.start()  # not before there is something to show: an error is one line
        self.bar.update(self.task, completed=progress.iteration)
        if not progress.is_validated or len(progress.validations) == self.n_shown:
            return
        self.n_shown = len(progress.validations)
        last = progress.validations[-1]
        self.bar.print(
            f"{last.iteration:8,d}  loss {last.total_loss:.4f}  success {last.success:.1%}  "
            f"KL {last.locality_loss:.4f} nats  drawdown {last.drawdown:+.2%}"
            f"{'  best' if progress.best is last else ''}"
        )
