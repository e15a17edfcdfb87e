"""Show a study's edits as a table, or everything that is known of one; nothing is written.

jaxedit show runs/laptop
jaxedit show runs/laptop 3           its record, its change, what became of it
jaxedit show runs/laptop 3 --json
"""

from jaxedit.cli._flags import FLAGS, json_flag
from jaxedit.cli._output import print_json, show_study, show_table
from jaxedit.rounding import read_whole_number

ARGUMENTS = ("RUN", "[STEP]")


def define_flags() -> None:
    """Define the flags of this command."""
    json_flag()


def main(run: str, step: str | None = None) -> None:
    """Show a study, or one of its edits."""
    from jaxedit.reports.edit_details import detail_rows, edit_details
    from jaxedit.study.journal import read_journal
    from jaxedit.study.mirror import fetch_workdir

    if step is None:
        show_study(fetch_workdir(run), FLAGS.json)
        return
    number = read_whole_number(step)
    if number is None:
        raise ValueError(f"STEP {step[:80]}: expected the number of an edit, e.g. 3")
    details = edit_details(read_journal(fetch_workdir(run)), number)
    if FLAGS.json:
        print_json({"workdir": run, **details})
        return
    header = [f"edit {step}", "value"]
    show_table(header, detail_rows(details), left=header)
