"""Merge the shards of a study of single edits and show its report.

    jaxedit study --config=single_edits --config.shard=1/2 --workdir=runs/scan    one process
    jaxedit study --config=single_edits --config.shard=2/2 --workdir=runs/scan    another
    jaxedit merge --workdir=runs/scan                                   into runs/scan/merged

What is merged is what one process would have journalled: a batch of edits is the same in whichever
shard it is made.
"""

from jaxedit.cli._flags import FLAGS, json_flag, path_flag
from jaxedit.cli._output import show_report


def define_flags() -> None:
    """Define the flags of this command."""
    path_flag("workdir", None, "the folder that holds the shards")
    json_flag()


def main() -> None:
    """Merge, then report."""
    from jaxedit.study.merge import merge_shards
    from jaxedit.study.mirror import local_workdir

    if not FLAGS.workdir:
        raise ValueError("--workdir is missing, e.g. --workdir=runs/single_edits")
    with local_workdir(FLAGS.workdir) as folder:
        show_report(merge_shards(folder), FLAGS.json)
