"""Kinds of values that flags have: paths, and configurations."""

from typing import TYPE_CHECKING

from absl import flags

from jaxedit.files import local_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class PathParser(flags.ArgumentParser):
    """Reads a path; a leading ~ is the user's home, which the shell leaves alone behind a =."""

    def parse(self, argument: str) -> str:
        """Return the path as text, since it may also be a name or an address."""
        return str(local_path(argument)) if argument.startswith("~") else argument

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
