"""Show a study's report again: a table, report.md, report.html and the figures, from its journal.

    jaxedit report --workdir=runs/laptop
    jaxedit report --workdir=runs/gpt2-xl --reference="curves.json:ROME, hard"

--reference draws a published curve beside the study's own.
"""

from pathlib import Path

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, reference_flag
from jaxedit.cli._output import show_report


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", "runs/laptop", "the study's work directory")
    reference_flag()
    json_flag()


def main() -> None:
    """Write the report and show it."""
    from jaxedit.reports.curves import read_curves

    show_report(Path(FLAGS.workdir), FLAGS.json, read_curves(FLAGS.reference))
