"""Edit facts one after the other and measure the model after each: the main job.

    jaxedit study                       the built-in facts on SmolLM2-135M
    jaxedit study --config=paper:gpt2-xl --config.facts=counterfact.json \\
        --config.texts=ME-PPL_50.json
    jaxedit study --config=single_edits --config.shard=2/8     one of eight processes; then merge
    jaxedit study --set=editor.v_lr=0.3 --set=n_facts=16 --workdir=runs/slower
    jaxedit study --run=runs/laptop --workdir=runs/more      on top of a study's kept edits

An interrupted study goes on with the same command. The report lies in the work directory.
"""

import contextlib
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxedit.cli._flags import (
    FLAGS,
    apply_set,
    apply_start,
    config_flag,
    edited_flags,
    json_flag,
    process_flags,
    set_flag,
)
from jaxedit.cli._output import StepBar, show_report
from jaxedit.distributed import is_first_process, process_workdir


def define_flags() -> None:
    """Define the flags of this command."""
    config_flag()
    set_flag()
    edited_flags()
    flags.DEFINE_string(
        "workdir", None, "where journal and report go; runs/NAME OF THE CONFIGURATION"
    )
    flags.DEFINE_bool(
        "tensorboard", False, "write TensorBoard events to the work directory while the study runs"
    )
    process_flags()
    json_flag()


def main() -> None:
    """Run the study, then its report."""
    from jaxedit.reports.tensorboard import TensorBoardWriter
    from jaxedit.study.loop import run_study
    from jaxedit.study.merge import shard_folder
    from jaxedit.study.record import StepRecord

    config = FLAGS.config
    apply_set(config)
    apply_start(config)
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    folder = Path(FLAGS.workdir or f"runs/{Path(path).stem}{'-' + argument if argument else ''}")
    if config.get("shard"):
        folder = shard_folder(folder, config.shard)
    folder = process_workdir(folder)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(StepBar(single=config.mode == "single"))
        writer = None
        if FLAGS.tensorboard and is_first_process():
            writer = stack.enter_context(TensorBoardWriter(folder))

        def on_step(record: StepRecord, total: int) -> None:
            bar.show_step(record, total)
            if writer is not None:
                writer.write_step(record)

        run_study(config, folder, on_step)
    show_report(folder, FLAGS.json)
