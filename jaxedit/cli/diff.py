"""Say what differs between two studies: their configurations, their facts, their outcomes.

    jaxedit diff runs/laptop runs/laptop-memit
    jaxedit diff runs/laptop runs/laptop-memit --json

Edits belong together that write the same request, wherever they stand in their studies.
"""

import json
from typing import Any

from jaxedit.cli._flags import FLAGS, json_flag
from jaxedit.cli._output import print_json, show_table

ARGUMENTS = ("RUN1", "RUN2")
MOST_COLUMNS = 60  # of a value in the table


def define_flags() -> None:
    """Define the flags of this command."""
    json_flag()


def main(first: str, second: str) -> None:
    """Compare the studies and show what differs."""
    from jaxedit.reports.difference import EDIT_HEADER, diff_studies, edit_row
    from jaxedit.reports.records import is_single
    from jaxedit.study.journal import read_journal
    from jaxedit.study.mirror import fetch_workdir

    # What differs; as an object all of it, with the records of the edits.
    journals = read_journal(fetch_workdir(first)), read_journal(fetch_workdir(second))
    found = diff_studies(*journals)
    if FLAGS.json:
        print_json(
            {
                "settings": {key: values for key, *values in found.settings},
                "only_first": [record.to_dict() for record in found.only_first],
                "only_second": [record.to_dict() for record in found.only_second],
                "outcomes": {name: values for name, *values in found.outcomes},
                "edits": [[record.to_dict() for record in pair] for pair in found.edits],
            }
        )
        return

    # For people: a table of each that is not empty.
    if not any(found):
        print(f"{first} and {second} do not differ in configuration, facts or outcomes.")
        return
    settings = [[key, *map(_short, values)] for key, *values in found.settings]
    _show("Configuration", ["key", first, second], settings)
    for name, records in ((first, found.only_first), (second, found.only_second)):
        rows = [[str(record.step), record.request_summary] for record in records]
        _show(f"Facts of {name} alone", ["#", "edit"], rows)
    _show("Outcomes", ["of all edits", first, second], [list(row) for row in found.outcomes])
    single = is_single(journals[0]), is_single(journals[1])
    _show("Edits", EDIT_HEADER, [edit_row(pair, single) for pair in found.edits])


def _show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table below its title, where it has rows; columns of numbers are aligned right."""
    if not rows:
        return
    numbers = ("#", "P(new)", "ratio")
    left = [name for name in header if not name.startswith(numbers)]
    show_table(header, rows, left=left, title=title)
    print()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_COLUMNS else text[: MOST_COLUMNS - 3] + "..."
