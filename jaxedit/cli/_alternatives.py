"""Several ways to make one edit, for `jaxedit edit --alternatives`."""

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


def check_alternative_flags() -> None:
    """Check that --alternatives has its texts, and no flags that an alternative says itself.

    Raises:
      ValueError: where it does not; the message names the flags.
    """
    if bool(FLAGS.alternatives) != bool(FLAGS.harm_texts):
        raise ValueError(
            "--alternatives and --harm_texts go together: the ways to make the edit, and texts, "
            "others than --texts, whose loss is to rise least"
        )
    given = [name for name in ("layer", "set") if FLAGS[name].value]
    if FLAGS.alternatives and given:
        raise ValueError(
            f"--{given[0]} and --alternatives exclude each other: each alternative has its own "
            f"hyper-parameters, e.g. {EXAMPLE}"
        )


def read_alternatives() -> list[dict[str, Any]]:
    """Read the file of --alternatives; one that names no method has --method.

    Raises:
      ValueError: where it is no list of objects.
    """
    from jaxedit.files import read_json

    read = read_json(Path(FLAGS.alternatives), list)
    if not read or not all(isinstance(each, dict) for each in read):
        raise ValueError(f"{FLAGS.alternatives}: expected a list of objects, e.g. {EXAMPLE}")
    return [{"method": FLAGS.method, **each} for each in read]


def choose_alternative(
    model: "Model", request: "Request", stats: "Stats | None"
) -> tuple[dict[str, Any], "Edit", dict[str, float], list[dict[str, Any]]]:
    """Choose among the alternatives of --alternatives.

    Returns:
      Of the chosen one the editor's configuration, its edit and its numbers; and of all of them
      what the choice was made by.

    Raises:
      ValueError: where the model says the new answer after none of them, or where --harm_texts
        and --texts share one.
    """
    from jaxedit.analyses.edit_choice import choose_edit
    from jaxedit.datasets import read_texts
    from jaxedit.solving.harm_texts import check_not_evaluated

    asked, harm_texts = read_alternatives(), read_texts(FLAGS.harm_texts)
    check_not_evaluated(harm_texts, read_texts(FLAGS.texts))
    choice = choose_edit(model, request, asked, harm_texts, stats)
    rows = [
        {
            "alternative": given,
            "chosen": each is choice.chosen,
            "efficacy_accuracy": each.accuracy,
            "predicted_nats": each.predicted_nats,
            "stderr_nats": each.stderr_nats,
            "error": each.error,
        }
        for given, each in zip(asked, choice.alternatives, strict=True)
    ]
    chosen = choice.chosen
    if chosen is None or chosen.edit is None:
        errors = "; ".join(each.error for each in choice.alternatives if each.error)
        raise ValueError(
            f"after none of the {len(rows)} alternatives of {FLAGS.alternatives} does the model "
            f"say the new answer{': ' if errors else ''}{errors}"
        )
    return dict(chosen.editor), chosen.edit, dict(chosen.info), rows


def show_alternatives(rows: list[dict[str, Any]]) -> None:
    """Print what was predicted of each alternative."""
    from jaxedit.reports.formatting import format_number, format_percent

    table = [
        [
            "→" if row["chosen"] else "",
            ", ".join(f"{name} {value}" for name, value in row["alternative"].items()),
            "–" if row["error"] else format_percent(row["efficacy_accuracy"]),
            format_number(row["predicted_nats"]),
            format_number(row["stderr_nats"]),
        ]
        for row in rows
    ]
    header = ["", "alternative", "accuracy", "predicted change (nats)", "standard error"]
    show_table(header, table, left=("", "alternative"))
    for row, cells in zip(rows, table, strict=True):
        if row["error"]:
            results_console().print(f"{cells[1]}: {row['error']}", markup=False)
    results_console().print()
