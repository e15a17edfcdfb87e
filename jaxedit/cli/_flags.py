"""Flags that several commands have, and what they stand for."""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from absl import flags
from jax.errors import JaxRuntimeError

from jaxedit.cli._parsers import ConfigParser, PathParser, parse_steps
from jaxedit.distributed import is_first_process, is_multiprocess, start_processes
from jaxedit.messages import escape_controls, first_line
from jaxedit.rounding import read_whole_number

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxedit.models.model import Model
    from jaxedit.study.edited import EditedModel

FLAGS = flags.FLAGS
SHOWN_FACTS = 5  # of a model's edits, in one line each


def path_flag(name: str, default: str | None, about: str) -> None:
    """Define a flag whose value may be a path (but --model, in which `load` expands a ~)."""
    flags.DEFINE(PathParser(), name, default, about)


def path_multi_flag(name: str, about: str) -> None:
    """Define a flag that may be repeated, whose values may be paths."""
    flags.DEFINE_multi(PathParser(), flags.ArgumentSerializer(), name, [], about)


def process_flags() -> None:
    """Define the flags of commands that may run as several processes, one a host or a device."""
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "on", "off"],
        "join the other processes of a run: auto (where a Slurm step or TPU slice has several), "
        "on, off",
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where the others cannot be found out"
    )
    flags.DEFINE_integer(
        "num_processes", None, "how many processes there are, with --coordinator", lower_bound=1
    )
    flags.DEFINE_integer(
        "process_id", None, "which of them this is, from 0 on, with --coordinator", lower_bound=0
    )


@contextlib.contextmanager
def distributed_session():
    """Join the other processes of a run, if there are any; only the first one prints results."""
    if "distributed" not in FLAGS or FLAGS.distributed == "off":
        yield
        return
    given = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if FLAGS.distributed == "auto" and given == (None, None, None) and not is_multiprocess():
        yield
        return
    # What native code says goes to standard error (Gloo greets its peers), and results of the first
    # process only to output.
    output = os.dup(1)
    os.dup2(2, 1)
    start_processes(*given)
    process = jax.process_index()  # asked now: not when the others are gone
    where = output if is_first_process() else os.devnull
    encoding, errors = sys.stdout.encoding, "backslashreplace"
    with (
        open(where, "w", encoding=encoding, errors=errors) as results,
        contextlib.redirect_stdout(results),
    ):
        try:
            yield
        except (JaxRuntimeError, OSError) as error:
            print(
                f"jaxedit: error: process {process} stops, by its own fault or since "
                f"another is gone ({first_line(error)}); what was finished is kept, the "
                "same command goes on from there, also on another number of devices",
                file=sys.stderr,
                flush=True,
            )
            os._exit(3)  # the others may not be there to say goodbye to


def model_flags() -> None:
    """Define the flags of commands that run a model."""
    process_flags()
    flags.DEFINE_string("model", "smollm2-135m", "a name, an HF directory or hub id, a .gguf file")
    flags.DEFINE_string(
        "dtype", None, "float32 or bfloat16; float32 on a CPU, bfloat16 on accelerators"
    )
    flags.DEFINE_string(
        "mesh", "", "devices, e.g. data:4,model:2 (-1 for the rest); empty: all on data"
    )


def load_model() -> "Model":
    """Load the model that the flags name, with the edits of --run or --edit where they are given.

    What edits it has goes to standard error.
    """
    from jaxedit.models.load import load

    if "run" in FLAGS and (FLAGS.run or FLAGS.edit):
        edited = load_edited(FLAGS.dtype)
        say_edits(edited)
        return edited.model
    if "run" in FLAGS:
        check_edited_flags()
    return load(FLAGS.model, mesh=FLAGS.mesh, dtype=FLAGS.dtype)


def edited_flags() -> None:
    """Define the flags that name an edited model, in commands that run one."""
    path_flag("run", None, "a study's work directory: its model, with its kept edits")
    flags.DEFINE_list("run_steps", [], "these edits of --run instead, kept or not, e.g. 1,3,7-9")
    flags.DEFINE_integer("after_step", None, "the model of --run after this edit", lower_bound=0)
    path_flag("edit", None, "a file of `jaxedit edit --save`: its model, with that edit")


def check_edited_flags() -> None:
    """Check that what names an edited model goes together.

    Raises:
      ValueError: where it does not; the message names the flags.
    """
    if FLAGS.run and FLAGS.edit:
        raise ValueError("--run and --edit exclude each other: the edits come from one of them")
    if not FLAGS.run and (FLAGS.run_steps or FLAGS.after_step is not None):
        raise ValueError("--run_steps and --after_step are a study's: give its --run")
    if FLAGS.run_steps and FLAGS.after_step is not None:
        raise ValueError("--run_steps and --after_step exclude each other")
    if FLAGS.run and "model" in FLAGS and FLAGS["model"].present:
        raise ValueError(
            "--run and --model exclude each other: a study's model is the one it edited"
        )


def load_edited(dtype: str | None = None) -> "EditedModel":
    """Load the edited model that --run or --edit names, with what is known of its edits.

    Args:
      dtype: of the stored weights; None: the study's, or the device's default.

    Raises:
      ValueError: where neither is given, they do not go together, or what they name is not there.
    """
    from jaxedit.study.edited import open_edit, open_run
    from jaxedit.study.mirror import fetch_workdir

    check_edited_flags()
    mesh = FLAGS.mesh if "mesh" in FLAGS and FLAGS["mesh"].present else None
    if FLAGS.run:
        run_steps = step_numbers("run_steps") if FLAGS.run_steps else None
        return open_run(
            fetch_workdir(FLAGS.run), run_steps, FLAGS.after_step, mesh=mesh, dtype=dtype
        )
    if not FLAGS.edit:
        raise ValueError("give --run=RUN, a study's work directory, or --edit=FILE, a saved edit")
    source = FLAGS.model if "model" in FLAGS and FLAGS["model"].present else None
    return open_edit(Path(FLAGS.edit), source=source, mesh=mesh, dtype=dtype)


def apply_start(config: "ConfigDict") -> None:
    """Let a study begin with the model that --run or --edit names.

    Raises:
      ValueError: where the flags do not go together, or what they name is not there.
    """
    from jaxedit.edits.edit import Edit
    from jaxedit.study.config import default_config
    from jaxedit.study.journal import read_journal
    from jaxedit.study.mirror import fetch_workdir

    check_edited_flags()
    is_given = config.model != default_config().model
    if FLAGS.run:
        source = read_journal(fetch_workdir(FLAGS.run)).run["config"]["model"]
        if is_given and config.model != source:
            raise ValueError(f"--run={FLAGS.run} edited {source}, not model={config.model}")
        config.model = source
        steps = tuple(step_numbers("run_steps")) if FLAGS.run_steps else ()
        found = dict(run=FLAGS.run, run_steps=steps, after_step=FLAGS.after_step)
        config.update({"start": found})
    if FLAGS.edit:
        source = Edit.load(FLAGS.edit).record.get("model")
        config.model = config.model if is_given or source is None else source
        config.update({"start": {"edit": FLAGS.edit}})


def say_edits(edited: "EditedModel") -> None:
    """Say on standard error which edits a model has."""
    n_edits = len(edited.model.metadata.history)
    if not is_first_process():
        return
    print(f"{edited.source} with {n_edits} edit{'' if n_edits == 1 else 's'}", file=sys.stderr)
    facts = [request.summary for request in edited.requests]
    for fact in facts[:SHOWN_FACTS]:
        print(f"    {escape_controls(fact)}", file=sys.stderr)
    if len(facts) > SHOWN_FACTS:
        print(f"    and {len(facts) - SHOWN_FACTS} more facts", file=sys.stderr)


def config_flag(default: str | None = "laptop") -> None:
    """Define --config, a study's configuration, whose keys --config.KEY=VALUE sets.

    Args:
      default: its name; None: the flag must be given, and its keys are set by --set only.
    """
    about = "a configuration: a name (`jaxedit configs` lists them) or a file, with :ARGUMENT"
    if default is None:
        flags.DEFINE_string("config", None, about)
        return
    from ml_collections import config_flags

    from jaxedit.study.config_file import find_config

    # Its keys are flags too; what is read is this project's own, as its errors are.
    config_flags.DEFINE_config_file("config", str(find_config(default)), about)
    FLAGS["config"].parser = ConfigParser()


def set_flag() -> None:
    """Define --set, the override that all commands with a configuration have."""
    flags.DEFINE_multi_string(
        "set", [], "KEY=VALUE in the configuration, e.g. --set=editor.v_lr=0.3; may be repeated"
    )


def apply_set(config: "ConfigDict") -> None:
    """Set the keys of a configuration that --set names."""
    from jaxedit.study.run_config import set_keys

    set_keys(config, FLAGS.set)


def reference_flag() -> None:
    """Define the flag of commands that draw perplexity against edits."""
    path_multi_flag(
        "reference",
        'a published curve to draw as well, FILE.json:NAME of a file {NAME: {"x": edits, '
        '"y": perplexities}}; may be repeated',
    )


def whole_numbers(flag: str) -> list[int]:
    """Read the whole numbers of a list flag.

    Raises:
      ValueError: on anything else.
    """
    given = FLAGS[flag].value or []
    numbers = [read_whole_number(text.strip()) for text in given]
    if not given or None in numbers:
        raise ValueError(
            f"--{flag}={','.join(given)[:80]}: expected numbers with commas between them, e.g. "
            f"--{flag}=3,4,5"
        )
    return [number for number in numbers if number is not None]


def step_numbers(flag: str) -> list[int]:
    """Read the numbers of steps of a list flag, in which "7-9" stands for 7, 8 and 9.

    Raises:
      ValueError: on anything else.
    """
    given = FLAGS[flag].value or []
    example = f"with commas between, e.g. --{flag}=1,3,7-9"
    return parse_steps(given, f"--{flag}={','.join(given)[:80]}", example)


def prediction_flag() -> None:
    """Define the flag that asks for the predicted change of the loss."""
    flags.DEFINE_integer(
        "prediction_draws",
        0,
        "predict the change of the loss by so many draws of labels, e.g. 12; 0: do not",
        lower_bound=0,
    )
    flags.register_validator(
        "prediction_draws",
        lambda n: n != 1,
        "one draw has no standard error: expected 0, or 2 and more",
    )


def json_flag() -> None:
    """Define the flag of every command that prints a result."""
    flags.DEFINE_bool("json", False, "print one JSON object instead of a table")
