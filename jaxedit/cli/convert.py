"""Convert a model once to an Orbax checkpoint, of which each device reads its own slices.

    jaxedit convert --model=meta-llama/Llama-2-7b-hf --dtype=bfloat16 --out=llama-2-7b
    jaxedit study --config.model=llama-2-7b

For large models and several hosts, whose processes write and read one folder together.
"""

from pathlib import Path

from jaxedit.cli._flags import FLAGS, load_model, model_flags, path_flag


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    path_flag("out", None, "the folder to write; new")


def main() -> None:
    """Load, write and say where."""
    from jaxedit.models.load import resolve_path
    from jaxedit.models.orbax import write_orbax

    if not FLAGS.out:
        raise ValueError("--out is missing, e.g. --out=llama-2-7b")
    where = resolve_path(FLAGS.model)
    if not where.is_dir():
        raise ValueError(
            f"--model={FLAGS.model} is one file, which loads as it is; expected an HF directory or "
            "hub id"
        )
    write_orbax(load_model(), where, Path(FLAGS.out))
    print(f"{FLAGS.model} as {FLAGS.out}")
