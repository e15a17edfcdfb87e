"""Flags that several commands have, and what they stand for."""

import contextlib
import os
import sys

from absl import flags
from jax.errors import JaxRuntimeError

from jaxedit.distributed import is_first_process

FLAGS = flags.FLAGS


def process_flags() -> None:
    """The flags of every command that may run as several processes, one a host or a device."""
    about = "join the other processes of a run: auto (where a Slurm step or TPU slice has several), on, off"
    flags.DEFINE_enum("distributed", "auto", ["auto", "on", "off"], about)
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where the others cannot be found out"
    )
    flags.DEFINE_integer("num_processes", None, "how many processes there are, with --coordinator")
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0 on, with --coordinator")


@contextlib.contextmanager
def distributed_session():
    """Joins the other processes of a run, if there are any; only the first one's results are
    printed.
    """
    if "distributed" not in FLAGS or FLAGS.distributed == "off":
        yield
        return
    from jaxedit.distributed import is_multiprocess, start_processes

    given = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if FLAGS.distributed == "auto" and given == (None, None, None) and not is_multiprocess():
        yield
        return
    # What native code says goes to standard error (Gloo greets its peers), and results of the first
    # process only to output.
    output = os.dup(1)
    os.dup2(2, 1)
    start_processes(*given)
    with (
        open(output if is_first_process() else os.devnull, "w") as results,
        contextlib.redirect_stdout(results),
    ):
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


def model_flags() -> None:
    """The flags of every command that runs a model."""
    process_flags()
    flags.DEFINE_string("model", "smollm2-135m", "a name, an HF directory or hub id, a .gguf file")
    flags.DEFINE_string(
        "dtype", None, "float32 or bfloat16; float32 on a CPU, bfloat16 on accelerators"
    )
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
        raise ValueError(
            f"--{flag}={','.join(given)}: expected numbers with commas between them, e.g. --{flag}=3,4,5"
        )
    return [int(text) for text in given]


def json_flag() -> None:
    """The flag of every command that prints a result."""
    flags.DEFINE_bool("json", False, "print one JSON object instead of a table")
