"""Ask a study's requests again, of another base or by another method: a new study, its report.

    jaxedit replay runs/laptop --model=gpt2-xl
    jaxedit replay runs/laptop --set=editor.method=memit --workdir=runs/laptop-memit
    jaxedit replay runs/laptop --model=DIRECTORY --set=editor.layer=5 --set=editor.v_lr=0.3

All keys are the study's but those that are set. On another base the layers are those published for
it; another method begins with its own defaults, and without the study's alternatives. `jaxedit
diff` then says what differs. An interrupted replay goes on with the same command.
"""

import re
from pathlib import Path

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, path_flag, process_flags, set_flag
from jaxedit.cli._output import StepBar, show_report
from jaxedit.distributed import process_workdir

ARGUMENTS = ("RUN",)


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string(
        "model", None, "another base: a name, an HF directory or hub id, a .gguf file"
    )
    set_flag()
    path_flag(
        "workdir", None, "where the new study goes; beside RUN, with the model's name behind it"
    )
    process_flags()
    json_flag()


def main(run: str) -> None:
    """Run the new study, then its report."""
    from jaxedit.remote import is_remote
    from jaxedit.study.journal import read_journal
    from jaxedit.study.loop import run_study
    from jaxedit.study.mirror import fetch_workdir, local_workdir
    from jaxedit.study.run_config import replay_config

    if is_remote(run) and not FLAGS.workdir:
        raise ValueError(f"--workdir is missing: where the replay of {run} goes")
    source = fetch_workdir(run)
    config = replay_config(read_journal(source), FLAGS.model, FLAGS.set)
    with local_workdir(FLAGS.workdir or _folder_beside(source, config)) as folder:
        if folder.resolve() == source.resolve():
            raise ValueError(f"--workdir={folder} is the study that is replayed: give a new folder")
        folder = process_workdir(folder)
        with StepBar(single=config.mode == "single") as bar:
            run_study(config, folder, bar.show_step)
        show_report(folder, FLAGS.json)


def _folder_beside(source: Path, config) -> Path:
    """Name the folder of a replay by what it is given: the model and the method."""
    given = [Path(FLAGS.model).name] if FLAGS.model else []
    if any(text.startswith("editor.method=") for text in FLAGS.set):
        given.append(config.editor.method)
    behind = "-".join(re.sub(r"[^\w.-]+", "-", name) for name in given or ["replay"])
    return source.resolve().with_name(f"{source.resolve().name}-{behind}")
