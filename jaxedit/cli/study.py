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

from jaxedit.cli._flags import FLAGS, json_flag, process_flags
from jaxedit.cli._output import StepBar
from jaxedit.distributed import is_first_process
from jaxedit.study.config import built_in_config


def define_flags() -> None:
    """The flags of this command."""
    config_flags.DEFINE_config_file(
        "config", str(built_in_config()), "a configuration file, PATH or PATH:ARGUMENT"
    )
    flags.DEFINE_string(
        "workdir", None, "where journal and report go; runs/NAME OF THE CONFIGURATION"
    )
    flags.DEFINE_bool(
        "tensorboard", False, "write TensorBoard events to the work directory while the study runs"
    )
    process_flags()
    json_flag()


def main() -> None:
    """Runs the study, then its report."""
    from jaxedit.cli._output import show_report
    from jaxedit.distributed import process_workdir
    from jaxedit.reports.tensorboard import TensorBoardWriter
    from jaxedit.study.loop import run_study

    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    folder = Path(FLAGS.workdir or f"runs/{Path(path).stem}{'-' + argument if argument else ''}")
    config = FLAGS.config
    if config.part:
        folder /= f"part-{config.part.replace('/', '-of-')}"
    folder = process_workdir(folder)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(StepBar(single=config.mode == "single"))
        live = (
            stack.enter_context(TensorBoardWriter(folder))
            if FLAGS.tensorboard and is_first_process()
            else None
        )

        def on_step(record: dict[str, Any], total: int) -> None:
            bar.step(record, total)
            if live is not None:
                live.step(record)

        run_study(config, folder, on_step)
    show_report(folder, FLAGS.json)
