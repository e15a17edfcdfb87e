"""A study as an object, for notebooks: run or opened, its steps, its model, its report."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxedit.files import flatten_keys
from jaxedit.models.model import Model
from jaxedit.reports.markdown import write_report
from jaxedit.reports.records import edit_steps
from jaxedit.study import loop
from jaxedit.study.journal import read_journal
from jaxedit.study.mirror import fetch_workdir, local_workdir
from jaxedit.study.replay import edited_model


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's folder, read anew whenever something is asked of it.

    Attributes:
      folder: its work directory.
    """

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """The study's configuration, as nested dictionaries."""
        return read_journal(self.folder).run["config"]

    @property
    def steps(self) -> Any:
        """The edits, a row each: a pandas DataFrame, or a list of dictionaries without pandas.

        Columns are the keys of the journal's lines, dotted where they are nested
        ("perplexity.mean").
        """
        records = edit_steps(read_journal(self.folder))
        rows = [flatten_keys(record.to_dict()) for record in records]
        try:
            import pandas as pd
        except ModuleNotFoundError:
            return rows
        return pd.DataFrame(rows)

    def model(self, after_step: int | None = None) -> Model:
        """Load the study's model with its kept edits; after a step, or after the last.

        Raises:
          ValueError: as `jaxedit.study.replay.edited_model`.
        """
        return edited_model(self.folder, after_step=after_step)

    def report(self) -> Path:
        """Write the study's report, page and figures; return the report's path."""
        return write_report(self.folder)


def run_study(config: ConfigDict, workdir: str | Path) -> Study:
    """Run or continue a study.

    Args:
      config: as `jaxedit.study.config.default_config`.
      workdir: new, or a study's with the same configuration, which is then continued.

    Raises:
      ValueError: as `jaxedit.study.loop.run_study`.
      OSError: where a step cannot be written; all steps before are whole.
    """
    with local_workdir(workdir) as folder:
        return Study(loop.run_study(config, folder))


def open_study(workdir: str | Path) -> Study:
    """Open a study's folder.

    Raises:
      ValueError: where it is not one.
    """
    folder = fetch_workdir(workdir)
    read_journal(folder)
    return Study(folder)
