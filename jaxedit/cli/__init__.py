"""The command line: one file a command, with `define_flags()` and `main()`; its docstring is help.

Results go to standard output (a table for people, one JSON object with --json), all else to
standard error. Files whose name begins with an underscore are no commands.
"""

from jaxedit.cli._main import command_names, run

__all__ = ["command_names", "run"]
