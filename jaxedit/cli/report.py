"""Show a study's report again: a table, report.md, report.html and the figures, from its journal.

    jaxedit report --workdir=runs/laptop
    jaxedit report --workdir=runs/gpt2-xl --reference="curves.json:ROME, hard"
    jaxedit report --workdir=runs/laptop --csv                   for spreadsheets and pandas

--reference draws a published curve beside the study's own. --csv writes report.csv to the work
directory as well: one row a step, with all that the journal says of it.
"""

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, path_flag, reference_flag
from jaxedit.cli._output import results_console, show_report


def define_flags() -> None:
    """Define the flags of this command."""
    path_flag("workdir", "runs/laptop", "the study's work directory")
    reference_flag()
    flags.DEFINE_bool("csv", False, "write report.csv as well: one row a step, with all numbers")
    json_flag()


def main() -> None:
    """Write the report and show it."""
    from jaxedit.reports.csv_table import write_csv
    from jaxedit.reports.curves import read_curves
    from jaxedit.study.mirror import local_workdir

    with local_workdir(FLAGS.workdir) as folder:
        show_report(folder, FLAGS.json, read_curves(FLAGS.reference))
        if FLAGS.csv:
            path = write_csv(folder)
            if not FLAGS.json:
                results_console().print(f"Table: {path}")
