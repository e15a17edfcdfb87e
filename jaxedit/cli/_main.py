"""Run a command: its flags, its errors in one line, its exit status."""

import ast
import importlib
import logging
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from absl import flags

from jaxedit.cli._flags import FLAGS, distributed_session
from jaxedit.cli._output import drop_output, open_missing_streams, use_any_encoding
from jaxedit.compilation_cache import enable_compilation_cache
from jaxedit.did_you_mean import did_you_mean
from jaxedit.files import expand_home
from jaxedit.messages import escape_controls, first_line

USAGE = """jaxedit: edit facts in language models, and measure after every edit whether the model
still works.

    jaxedit COMMAND [flags]
    jaxedit COMMAND --help

"""


def command_names() -> list[str]:
    """Return the names of the commands, those of their files with "-" for "_"."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def command_module(name: str) -> str:
    """Return the dotted name of the module of a command."""
    return f"jaxedit.cli.{name.replace('-', '_')}"


def run(argv: list[str]) -> int:
    """Run `argv[1]` with its flags; return the exit status.

    That is what the command returns (None: 0), 2 on wrong input, 130 where it was interrupted and
    1 where nobody reads its output any more.
    """
    open_missing_streams()
    use_any_encoding(sys.stdout, sys.stderr)
    try:
        status = _run(argv)
        sys.stdout.flush()  # here, so that a full disk is an error of the command
    except BrokenPipeError:  # its reader has seen enough, as `head` does
        drop_output()
        return 1
    except OSError as error:
        drop_output()
        return _fail(_message(error, argv))
    return status


def _run(argv: list[str]) -> int:
    # Without a command: the list of commands, or the version.
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(USAGE + "\n".join(f"    {name:12s}{_summary(name)}" for name in command_names()))
        return 0
    if argv[1] == "--version":
        from importlib.metadata import version

        print(version("jaxedit"))
        return 0
    if argv[1] not in command_names():
        hint, known = did_you_mean(argv[1], command_names()), ", ".join(command_names())
        return _fail(f"unknown command {argv[1]!r}{hint} Commands: {known}")

    # The command defines its flags; then it runs, as one of several processes where there are more.
    command = importlib.import_module(command_module(argv[1]))
    logging.basicConfig(level=logging.WARNING, format="jaxedit: %(message)s", stream=sys.stderr)
    before, own = set(FLAGS), []
    try:
        command.define_flags()
        own = [name for name in FLAGS if name not in before]
        if any(argument in ("-h", "--help") for argument in argv[2:]):
            flag_help = "\n".join(_flag_help(FLAGS[name]) for name in own)
            print(f"{_command_help(argv[1], command)}\n\nFlags:\n{flag_help}")
            return 0
        rest = FLAGS([f"jaxedit {argv[1]}", *argv[2:]])
        own = [name for name in FLAGS if name not in before]
        arguments = [expand_home(each) for each in rest[1:]]
        _check_arguments(argv[1], _argument_names(command), arguments)
        enable_compilation_cache()
        with distributed_session():
            status = command.main(*arguments)
    except BrokenPipeError:
        raise
    # Wrong input is one line; what is a fault of this code keeps its traceback.
    except (ValueError, OSError, flags.Error) as error:
        return _fail(_message(error, argv))
    except (KeyError, AttributeError, TypeError) as error:
        if not _is_raised_in(error, "ml_collections"):
            raise
        return _fail(_message(error, argv))
    except (AssertionError, RuntimeError) as error:
        if not _is_raised_in(error, "xla_bridge.py"):
            raise
        return _fail(_no_device(error))
    except KeyboardInterrupt:
        print(
            "\njaxedit: interrupted; what was finished is kept, the same command goes on from "
            "there",
            file=sys.stderr,
        )
        return 130
    finally:
        for name in own:
            delattr(FLAGS, name)  # another command of this process defines its own
    return status or 0


def _argument_names(command: ModuleType) -> tuple[str, ...]:
    """Return the names of the arguments a command takes before or between its flags.

    A command that takes some says so by `ARGUMENTS`, e.g. ("RUN", "[STEP]") or ("RUN", "STEP...")
    (the last in brackets: may be missing; with dots: one or more), and its `main` is given their
    texts. Without it, flags are all that it takes.
    """
    return getattr(command, "ARGUMENTS", ())


def _check_arguments(name: str, expected: tuple[str, ...], given: list[str]) -> None:
    """Raise a ValueError where a command is not given the arguments it takes."""
    usage = " ".join(["jaxedit", name, *expected])
    required = [each for each in expected if not each.startswith("[")]
    if len(given) < len(required):
        raise ValueError(f"{required[len(given)]} is missing; expected {usage}")
    if len(given) > len(expected) and not (expected and expected[-1].endswith("...")):
        takes = f"expected {usage}; " if expected else ""
        raise ValueError(
            f"unexpected argument {given[len(expected)]!r}; {takes}flags are given as --name=value"
        )


def _is_raised_in(error: BaseException, code: str) -> bool:
    """Tell whether an error came through code whose file's path holds a text.

    From ml_collections come KeyError, AttributeError or TypeError on --config.KEY, from JAX's
    xla_bridge.py RuntimeError or AssertionError where the platform that is asked for has no device.
    """
    trace = error.__traceback__
    while trace is not None:
        if code in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False


def _no_device(error: BaseException) -> str:
    """Say that JAX has no device to run on, and what to do."""
    asked = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    wanted = f" of JAX_PLATFORMS={asked}" if asked else ""
    return (
        f"JAX finds no device{wanted} ({first_line(error)}); JAX_PLATFORMS=cpu runs on the CPU, "
        "`jaxedit doctor` says more"
    )


def _message(error: BaseException, argv: list[str]) -> str:
    """Put what an error says into one line."""
    text = str(error)
    if isinstance(error, (KeyError, AttributeError)):
        # From ml_collections: the key, sometimes with a suggestion.
        words = re.findall(r"\w+", text.replace("\\n", "\n").replace("Did you mean", ""))
        key, *hint = words or [text]
        for argument in argv:
            found = re.match(rf"--?config\.((?:.*\.)?{key})(=|$)", argument)
            if found:
                return f"{argument}: {_about_key(found[1], key, hint)}"
    return " ".join(text.split()) or type(error).__name__


def _about_key(path: str, key: str, hint: list[str]) -> str:
    """Say what to write instead of a configuration's key that is not there."""
    from jaxedit.study.config import unknown_key
    from jaxedit.study.renamed import new_name

    if new_name(path) is not None:
        return unknown_key(path)
    close = "a method's hyper-parameters are --config.editor.NAME=VALUE"
    if hint:
        close = f"did you mean {hint[0]!r}?"
    return f"the configuration has no {key!r} there; {close}"


def _fail(message: str) -> int:
    print(f"jaxedit: error: {escape_controls(message)}", file=sys.stderr)
    return 2


def _summary(name: str) -> str:
    file = f"{command_module(name).rpartition('.')[2]}.py"
    source = (Path(__file__).parent / file).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _command_help(name: str, command: ModuleType) -> str:
    """Return what a command is for, and its arguments where it takes any."""
    about, names = (command.__doc__ or "").strip(), _argument_names(command)
    usage = " ".join(["jaxedit", name, *names, "[flags]"])
    return f"{about}\n\nUsage: {usage}" if names else about


def _flag_help(flag: flags.Flag) -> str:
    default = "..." if flag.default is None or flag.name == "config" else str(flag.default) or "''"
    return f"  --{flag.name}{'' if flag.boolean else '=' + default}\n      {flag.help}"
