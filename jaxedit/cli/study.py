"""Edit facts one after the other and measure the model after each: the main job.

    jaxedit study                   the built-in facts on SmolLM2-135M
    jaxedit study --config=configs/paper.py:gpt2-xl --config.facts=counterfact.json --config.texts=ME-PPL_50.json
    jaxedit study --config=configs/single_edits.py --config.part=2/8     one of eight processes; then `jaxedit merge`
    jaxedit study --config.editor.v_lr=0.3 --config.n_facts=16 --workdir=runs/slower

An interrupted study goes on with the same command. The report lies in the work directory.
"""

import contextlib
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxedit.cli import FLAGS, is_first, json_flag, process_flags
from jaxedit.study.config import built_in_config


def define_flags() -> None:
    """The flags of this command."""
    config_flags.DEFINE_config_file("config", str(built_in_config()), "a configuration file, PATH or PATH:ARGUMENT")
    flags.DEFINE_string("workdir", None, "where journal and report go; runs/NAME OF THE CONFIGURATION")
    flags.DEFINE_bool("tensorboard", False, "write TensorBoard events to the work directory while the study runs")
    process_flags()
    json_flag()


def main() -> None:
    """Runs the study, then its report."""
    from jaxedit.cli.report import show
    from jaxedit.study.live import Live
    from jaxedit.study.loop import study
    from jaxedit.study.mirror import own_folder

    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    folder = Path(FLAGS.workdir or f"runs/{Path(path).stem}{'-' + argument if argument else ''}")
    config = FLAGS.config
    if config.part:
        folder /= f"part-{config.part.replace('/', '-of-')}"
    folder = own_folder(folder)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(StepBar(single=config.mode == "single"))
        live = stack.enter_context(Live(folder)) if FLAGS.tensorboard and is_first() else None

        def on_step(record: dict[str, Any], total: int) -> None:
            bar.step(record, total)
            if live is not None:
                live.step(record)

        study(config, folder, on_step)
    show(folder, FLAGS.json)


class StepBar:
    """A progress bar on standard error: the current perplexity and the expected time left."""

    def __init__(self, single: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.single = single
        self.console = Console(stderr=True, markup=False, emoji=False, quiet=not is_first())  # facts may hold brackets
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task("loading the model", total=None)

    def __enter__(self) -> "StepBar":
        if self.console.is_interactive:  # a log needs no bar before there is a step
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.update(self.task, visible=self.bar.tasks[0].total is not None)  # nothing was begun: nothing to show
        if self.bar.live.is_started:
            self.bar.stop()

    def step(self, record: dict[str, Any], total: int) -> None:
        """Shows one step."""
        from jaxedit.study.words import name_of, number, outcome

        self.bar.start()
        if "error" in record:
            self.bar.print(f"{record['step']:4d}  {name_of(record)}: {record['error']}")
        elif record["step"] == 0:
            self.bar.print(f"unedited model: perplexity {number(record['perplexity']['mean'])}")
        else:
            style = "bold red" if record["guard"] else None
            ppl = number(record["perplexity"]["mean"]) if "perplexity" in record else "not measured"
            guard = f" ({record['guard']})" if record["guard"] else ""
            self.bar.print(
                f"{record['step']:4d}  {name_of(record)}: perplexity {ppl}, {outcome(record, self.single)}{guard}", style=style
            )
        ppl = number(record["perplexity"]["mean"]) if "perplexity" in record else "–"
        self.bar.update(self.task, completed=record["step"], total=total, description=f"perplexity {ppl}")
