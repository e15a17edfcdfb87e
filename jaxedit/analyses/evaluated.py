"""Models that were evaluated on tasks, kept in a file so that none is evaluated twice."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxedit.files import read_json, to_json, write_atomic
from jaxedit.study.chain import seal, was_changed


def read_evaluated(
    path: Path, asked: Mapping[str, Any], typed: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Read the models that were evaluated before; none where the file is not there or damaged.

    Args:
      path: the file.
      asked: what they are evaluated for: tasks, items, texts.
      typed: makes a row of what is read, where numbers that are not finite are texts; what it
        raises where something is missing counts as damage.

    Raises:
      ValueError: where they were evaluated for something else.
    """
    if not path.is_file():
        return []
    try:
        found = read_json(path)
        if was_changed(found):
            raise ValueError(f"{path} was changed since it was written")
        models = [typed(row) for row in found["models"]]
    except (ValueError, KeyError, TypeError) as error:
        logging.getLogger("jaxedit").warning(
            "%s cannot be read, so it is made anew: %s", path, error
        )
        return []
    if found.get("asked") != to_json(asked):
        raise ValueError(
            f"{path} is of other tasks, items or texts ({found.get('asked')}); remove it to begin "
            "anew"
        )
    return models


def write_evaluated(
    path: Path, asked: Mapping[str, Any], models: Sequence[Mapping[str, Any]]
) -> None:
    """Write the models that were evaluated so far; there in whole or not at all."""
    content = json.dumps(seal({"asked": asked, "models": list(models)}), indent=1) + "\n"
    write_atomic(path, content)
