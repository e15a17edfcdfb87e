"""Several ways to make one edit, for `jaxedit edit --candidates`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxedit.cli._output import results_console, show_table

if TYPE_CHECKING:
    from jaxedit.edits.edit import Edit
    from jaxedit.edits.request import Request
    from jaxedit.models.model import Model
    from jaxedit.stats.second_moments import Stats

FLAGS = flags.FLAGS
EXAMPLE = '[{"method": "rome", "layer": 3}, {"method": "c-rome", "clamp_norm_factor": 2}]'


def check_candidate_flags() -> None:
    """Check that --candidates has its texts, and no flags that a candidate says itself.

    Raises:
      ValueError: where it does not; the message names the flags.
    """
    if bool(FLAGS.candidates) != bool(FLAGS.harm_texts):
        raise ValueError(
            "--candidates and --harm_texts go together: the ways to make the edit, and texts, "
            "others than --texts, whose loss is to rise least"
        )
    given = [name for name in ("layer", "set") if FLAGS[name].value]
    if FLAGS.candidates and given:
        raise ValueError(
            f"--{given[0]} and --candidates exclude each other: each candidate has its own "
            f"hyper-parameters, e.g. {EXAMPLE}"
        )


def read_candidates() -> list[dict[str, Any]]:
    """Read the file of --candidates; one that names no method has --method.

    Raises:
      ValueError: where it is no list of objects.
    """
    from jaxedit.files import read_json

    read = read_json(Path(FLAGS.candidates), list)
    if not read or not all(isinstance(each, dict) for each in read):
        raise ValueError(f"{FLAGS.candidates}: expected a list of objects, e.g. {EXAMPLE}")
    return [{"method": FLAGS.method, **each} for each in read]


def choose_candidate(
    model: "Model", request: "Request", stats: "Stats | None"
) -> tuple[dict[str, Any], "Edit", dict[str, float], list[dict[str, Any]]]:
    """Choose among the candidates of --candidates.

    Returns:
      Of the chosen one the editor's configuration, its edit and its numbers; and of all of them
      what the choice was made by.

    Raises:
      ValueError: where the model says the new answer after none of them.
    """
    from jaxedit.analyses.edit_choice import choose_edit
    from jaxedit.datasets import read_texts

    asked = read_candidates()
    choice = choose_edit(model, request, asked, read_texts(FLAGS.harm_texts), stats)
    rows = [
        {
            "candidate": given,
            "chosen": each is choice.chosen,
            "efficacy_accuracy": each.accuracy,
            "harm_nats": each.harm_nats,
            "stderr_nats": each.stderr_nats,
            "error": each.error,
        }
        for given, each in zip(asked, choice.candidates, strict=True)
    ]
    chosen = choice.chosen
    if chosen is None or chosen.edit is None:
        errors = "; ".join(each.error for each in choice.candidates if each.error)
        raise ValueError(
            f"after none of the {len(rows)} candidates of {FLAGS.candidates} does the model say "
            f"the new answer{': ' if errors else ''}{errors}"
        )
    return dict(chosen.editor), chosen.edit, dict(chosen.info), rows


def show_candidates(rows: list[dict[str, Any]]) -> None:
    """Print what was predicted of each candidate."""
    from jaxedit.reports.formatting import format_number, format_percent

    table = [
        [
            "→" if row["chosen"] else "",
            ", ".join(f"{name} {value}" for name, value in row["candidate"].items()),
            format_percent(row["efficacy_accuracy"]),
            format_number(row["harm_nats"]),
            format_number(row["stderr_nats"]),
        ]
        for row in rows
    ]
    header = ["", "candidate", "accuracy", "predicted harm (nats)", "standard error"]
    show_table(header, table, left=("", "candidate"))
    results_console().print()
