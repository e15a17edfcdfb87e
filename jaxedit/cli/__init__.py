"""The command line: one file a command, whose docstring is its help, with `define_flags()` and `main()`.

Results go to standard output (a table for people, one JSON object with --json), all else to standard error.
"""

import ast
import contextlib
import difflib
import importlib
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags
from jax.errors import JaxRuntimeError

from jaxedit.cache import keep_compiled

FLAGS = flags.FLAGS

USAGE = """jaxedit: edit facts in language models, and measure after every edit whether the model still works.

    jaxedit COMMAND [flags]
    jaxedit COMMAND --help

"""


def names() -> list[str]:
    """The commands there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def run(argv: list[str]) -> int:
    """Runs `argv[1]` with its flags; returns the exit status (2: wrong input, 130: interrupted)."""
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(USAGE + "\n".join(f"    {name:10s}{_summary(name)}" for name in names()))
        return 0
    if argv[1] == "--version":
        from importlib.metadata import version

        print(version("jaxedit"))
        return 0
    if argv[1] not in names():
        close = difflib.get_close_matches(argv[1], names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return _fail(f"unknown command {argv[1]!r}{hint} Commands: {', '.join(names())}")
    command = importlib.import_module(f"jaxedit.cli.{argv[1]}")
    logging.basicConfig(level=logging.WARNING, format="jaxedit: %(message)s", stream=sys.stderr)
    before, own = set(FLAGS), []
    try:
        command.define_flags()
        own = [name for name in FLAGS if name not in before]
        if any(argument in ("-h", "--help") for argument in argv[2:]):
            flag_help = "\n".join(_flag_help(FLAGS[name]) for name in own)
            print(f"{(command.__doc__ or '').strip()}\n\nFlags:\n{flag_help}")
            return 0
        rest = FLAGS([f"jaxedit {argv[1]}", *argv[2:]])
        own = [name for name in FLAGS if name not in before]
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}; flags are given as --name=value")
        keep_compiled()
        with joined():
            command.main()
    except (ValueError, KeyError, AttributeError, TypeError, OSError, flags.Error) as error:
        if not isinstance(error, (ValueError, OSError, flags.Error)) and not _from_configuration(error):
            raise
        return _fail(_message(error, argv))
    except KeyboardInterrupt:
        print("\njaxedit: interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    finally:
        for name in own:
            delattr(FLAGS, name)  # another command of this process defines its own
    return 0


def process_flags() -> None:
    """The flags of every command that may run as several processes, one a host or a device."""
    about = "join the other processes of a run: auto (where a Slurm step or TPU slice has several), on, off"
    flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], about)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the others cannot be found out")
    flags.DEFINE_integer("num_processes", None, "how many processes there are, with --coordinator")
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0 on, with --coordinator")


@contextlib.contextmanager
def joined():
    """Joins the other processes of a run, if there are any; only the first one's results are printed."""
    if "distributed" not in FLAGS or FLAGS.distributed == "off":
        yield
        return
    from jaxedit.mesh import are_several, start_processes

    given = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if FLAGS.distributed == "auto" and given == (None, None, None) and not are_several():
        yield
        return
    # What native code says goes to standard error (Gloo greets its peers), and results of the first process only to output.
    output = os.dup(1)
    os.dup2(2, 1)
    start_processes(*given)
    with open(output if is_first() else os.devnull, "w") as results, contextlib.redirect_stdout(results):
        try:
            yield
        except (JaxRuntimeError, OSError) as error:
            about = str(error).splitlines()[0]
            print(
                f"jaxedit: error: process {FLAGS.process_id or 0} stops, by its own fault or since another is gone ({about}); "
                "what was finished is kept, the same command goes on from there, also on another number of devices",
                file=sys.stderr,
                flush=True,
            )
            os._exit(3)  # the others may not be there to say goodbye to


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    import jax

    return jax.process_index() == 0


def model_flags() -> None:
    """The flags of every command that runs a model."""
    process_flags()
    flags.DEFINE_string("model", "smollm2-135m", "a name, an HF directory or hub id, a .gguf file")
    flags.DEFINE_string("dtype", None, "float32 or bfloat16; float32 on a CPU, bfloat16 on accelerators")
    flags.DEFINE_string("mesh", "", "devices, e.g. data:4,model:2; all on data")


def reference_flag() -> None:
    """The flag of commands that draw perplexity against edits."""
    about = 'a curve to draw as well, FILE.json:NAME of a file {NAME: {"x": edits, "y": perplexities}}; may be repeated'
    flags.DEFINE_multi_string("reference", [], about)


def load_model():
    """The model that the flags name."""
    import jaxedit

    return jaxedit.load(FLAGS.model, mesh=FLAGS.mesh, dtype=FLAGS.dtype)


def layer_numbers(flag: str) -> list[int]:
    """The layers that a list flag names."""
    given: list[str] = FLAGS[flag].value or []
    if not given or not all(text.strip().isdigit() for text in given):
        raise ValueError(f"--{flag}={','.join(given)}: expected numbers with commas between them, e.g. --{flag}=3,4,5")
    return [int(text) for text in given]


def json_flag() -> None:
    """The flag of every command that prints a result."""
    flags.DEFINE_bool("json", False, "print one JSON object instead of a table")


def print_json(value: Any) -> None:
    """One JSON object on standard output; numbers that are not finite as strings."""
    from jaxedit.edits.journal import plain

    print(json.dumps(plain(value), ensure_ascii=False))


def show_table(header: list[str], rows: list[list[str]]) -> None:
    """A table for people: names on the left, numbers on the right."""
    from rich.console import Console
    from rich.table import Table

    # Facts may hold brackets. A file or a pipe has no width of its own.
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in header:
        table.add_column(title, justify="left" if title in ("method", "edit") else "right")
    for cells in rows:
        table.add_row(*cells)
    console.print(table)


def _from_configuration(error: BaseException) -> bool:
    """ml_collections raises KeyError, AttributeError and TypeError on a wrong --config.key."""
    trace = error.__traceback__
    while trace is not None:
        if "ml_collections" in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False


def _message(error: BaseException, argv: list[str]) -> str:
    """What an error says, in one line."""
    text = str(error)
    if isinstance(error, (KeyError, AttributeError)):  # from ml_collections: the key, sometimes with a suggestion
        key, *hint = re.findall(r"\w+", text.replace("\\n", "\n").replace("Did you mean", "")) or [text]
        for argument in argv:
            if re.match(rf"--?config\.(.*\.)?{key}(=|$)", argument):
                close = f"did you mean {hint[0]!r}?" if hint else "a method's hyper-parameters are --config.editor.NAME=VALUE"
                return f"{argument}: the configuration has no {key!r} there; {close}"
    if "Error whilst parsing config file" in text:  # the rest is a traceback
        text = text.strip().splitlines()[-1]
    return " ".join(text.split())


def _fail(message: str) -> int:
    print(f"jaxedit: error: {message}", file=sys.stderr)
    return 2


def _summary(name: str) -> str:
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _flag_help(flag: flags.Flag) -> str:
    default = "..." if flag.default is None or flag.name == "config" else str(flag.default) or "''"
    return f"  --{flag.name}{'' if flag.boolean else '=' + default}\n      {flag.help}"
