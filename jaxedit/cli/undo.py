"""Take edits out of a study's model: a line of its journal says so, and nothing is erased.

    jaxedit undo runs/laptop 3
    jaxedit undo runs/laptop 3 7-9

Afterwards the study's model is bit for bit the one that never had these edits, wherever it is used
(`--run=runs/laptop`), and so is the study where it goes on. Edits that were made later stay as they
are, though they were optimised on a model that had these: they are named.
"""

import logging

from jaxedit.cli._flags import FLAGS, json_flag
from jaxedit.cli._output import print_json, results_console
from jaxedit.cli._parsers import parse_steps

ARGUMENTS = ("RUN", "STEP...")


def define_flags() -> None:
    """Define the flags of this command."""
    json_flag()


def main(run: str, *steps: str) -> None:
    """Undo the edits, and write the study's report anew."""
    from jaxedit.reports.formatting import format_ranges
    from jaxedit.reports.markdown import write_report
    from jaxedit.study.mirror import local_workdir
    from jaxedit.study.undo import undo_steps

    # The undo, and which later edits rest on what is undone.
    numbers = parse_steps(steps, " ".join(steps)[:80], "with spaces between, e.g. 3 7-9")
    with local_workdir(run) as folder:
        undone = undo_steps(folder, numbers)
        report = write_report(folder)
    for each in undone:
        if each.later_steps:
            logging.getLogger("jaxedit").warning(
                "edits %s were optimised on a model that had edit %d; they stay as they are",
                format_ranges(each.later_steps),
                each.step,
            )
    if FLAGS.json:
        print_json({"workdir": run, "undone": [each._asdict() for each in undone]})
        return
    console = results_console()
    for each in undone:
        console.print(f"Edit {each.step} is undone: {each.request_summary}")
    console.print(f"\nReport: {report}")
