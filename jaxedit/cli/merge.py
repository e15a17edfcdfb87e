"""Put the parts of a study of single edits together and show its report.

jaxedit study --config=configs/single_edits.py --config.part=1/2 --workdir=runs/scan      in one process or machine
jaxedit study --config=configs/single_edits.py --config.part=2/2 --workdir=runs/scan      in another, at the same time
jaxedit merge --workdir=runs/scan                                                         into runs/scan/merged

What is merged is what one process would have journalled: a lot of edits is the same in whichever
part it is made."""

from pathlib import Path

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "the folder that holds the parts")
    json_flag()


def main() -> None:
    """Merges, then reports."""
    from jaxedit.cli._output import show_report
    from jaxedit.study.merge import merge_shards

    if not FLAGS.workdir:
        raise ValueError("--workdir is missing, e.g. --workdir=runs/single_edits")
    show_report(merge_shards(Path(FLAGS.workdir)), FLAGS.json)
