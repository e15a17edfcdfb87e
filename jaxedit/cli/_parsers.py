"""Kinds of values that flags have: paths, configurations, numbers of steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from jaxedit.files import expand_home
from jaxedit.rounding import read_whole_number

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MOST_STEPS = 1_000_000  # in one range of steps


class PathParser(flags.ArgumentParser):
    """Reads a path; a leading ~ is the user's home, which the shell leaves alone behind a =."""

    def parse(self, argument: str) -> str:
        """Return the path as text, since it may also be a name or an address."""
        return expand_home(argument)

    def flag_type(self) -> str:
        """Return what the values are called in help."""
        return "path"


class ConfigParser(flags.ArgumentParser):
    """Reads NAME_OR_PATH[:ARGUMENT] as the configuration that it names."""

    def parse(self, argument: str) -> "ConfigDict":
        """Return what the file's get_config() gives."""
        from jaxedit.study.config import read_config, split_argument

        return read_config(*split_argument(argument)).lock()

    def flag_type(self) -> str:
        """Return what the values are called in help."""
        return "configuration"


def parse_steps(texts: Sequence[str], given: str, example: str) -> list[int]:
    """Read numbers of steps up to a million, in which "7-9" stands for 7, 8 and 9.

    Args:
      texts: a number or range each.
      given: what an error names.
      example: and what it says to give instead.

    Raises:
      ValueError: on anything else.
    """
    numbers: list[int] = []
    for text in texts:
        first, dash, last = text.strip().partition("-")
        start = read_whole_number(first, MOST_STEPS)
        end = read_whole_number(last, MOST_STEPS) if dash else start
        if start is None or end is None or start > end:
            raise ValueError(f"{given}: expected numbers of steps and ranges of them {example}")
        numbers += range(start, end + 1)
    return numbers
