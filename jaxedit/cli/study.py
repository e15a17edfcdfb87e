"""Edit facts one after the other and measure the model after each: the main job.

    jaxedit study                       the built-in facts on SmolLM2-135M
    jaxedit study --config=paper:gpt2-xl --config.facts=counterfact.json \\
        --config.texts=ME-PPL_50.json
    jaxedit study --config=single_edits --config.shard=2/8     one of eight processes; then merge
    jaxedit study --set=editor.v_lr=0.3 --set=n_facts=16 --workdir=runs/slower
    jaxedit study --run=runs/laptop --workdir=runs/more      on top of a study's kept edits
    jaxedit study --track=tensorboard,wandb      its numbers in experiment trackers, while it runs

An interrupted study goes on with the same command. The report lies in the work directory.
"""

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
    path_flag,
    process_flags,
    set_flag,
)
from jaxedit.cli._output import StepBar, print_json, results_console, show_report
from jaxedit.distributed import is_first_process, process_workdir


def define_flags() -> None:
    """Define the flags of this command."""
    config_flag()
    set_flag()
    edited_flags()
    path_flag("workdir", None, "where journal and report go, a path or an address; runs/NAME")
    flags.DEFINE_list(
        "track",
        [],
        "experiment trackers that get each step's numbers while the study runs, with commas "
        "between them: mlflow, tensorboard, trackio, wandb",
    )
    flags.DEFINE_bool("tensorboard", False, "called --track=tensorboard now")
    process_flags()
    json_flag()


def main() -> None:
    """Run the study, then its report."""
    from jaxedit.reports.tracking import StudyTracking
    from jaxedit.study.config import split_argument
    from jaxedit.study.journal import read_journal
    from jaxedit.study.loop import run_study
    from jaxedit.study.merge import shard_folder
    from jaxedit.study.mirror import local_workdir
    from jaxedit.study.record import StepRecord

    if FLAGS.tensorboard:
        raise ValueError("the flag --tensorboard is called --track=tensorboard now")
    config = FLAGS.config
    apply_set(config)
    apply_start(config)
    path, argument = split_argument(config_flags.get_config_filename(flags.FLAGS["config"]))
    workdir = FLAGS.workdir or f"runs/{path.stem}{'-' + argument if argument else ''}"
    with local_workdir(workdir) as folder:
        name = folder.resolve().name
        if config.get("shard"):
            folder = shard_folder(folder, config.shard)
            name = f"{name}-{folder.name}"
        tracking = StudyTracking(FLAGS.track, name, folder, config.to_dict())
        folder = process_workdir(folder)
        with StepBar(single=config.mode == "single") as bar, tracking:

            def on_step(record: StepRecord, total: int) -> None:
                bar.show_step(record, total)
                if FLAGS.track and is_first_process():
                    tracking.write_step(record)

            run_study(config, folder, on_step)
        if config.get("shard") and len(read_journal(folder).steps) == 1:
            _show_empty_shard(folder)
            return
        show_report(folder, FLAGS.json)


def _show_empty_shard(folder: Path) -> None:
    """Say that a shard has no edits: there are more shards than batches of edits."""
    if FLAGS.json:
        print_json({"workdir": str(folder), "steps": []})
    else:
        results_console().print(f"{folder} has no edits: all are in other shards.")
