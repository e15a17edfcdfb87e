"""List the configurations that come with jaxedit, for --config=NAME or NAME:ARGUMENT.

jaxedit configs
jaxedit configs --name=published      its arguments, and what its file says of it
"""

import ast

from jaxedit.cli._flags import FLAGS, json_flag, path_flag
from jaxedit.cli._output import print_json, results_console, show_table


def define_flags() -> None:
    """Define the flags of this command."""
    path_flag("name", None, "a configuration, whose arguments are listed")
    json_flag()


def main() -> None:
    """List the configurations, or one's arguments."""
    from jaxedit.study.config import variants_of
    from jaxedit.study.config_file import config_names, find_config

    names = [FLAGS.name] if FLAGS.name else config_names()
    described = {}
    for name in names:
        path = find_config(name)
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        described[name] = {"about": docstring, "arguments": list(variants_of(path))}
    if FLAGS.json:
        print_json(described)
        return
    if FLAGS.name:
        (found,) = described.values()
        results_console().print(f"{found['about']}\n\nArguments: {', '.join(found['arguments'])}")
        return
    rows = [
        [name, str(len(found["arguments"]) or ""), found["about"].splitlines()[0]]
        for name, found in described.items()
    ]
    show_table(["name", "arguments", "about"], rows, left=("name", "about"))
