"""Write an edited model for other programs: a LoRA adapter, a whole checkpoint, or the changes.

    jaxedit export runs/laptop --format=gguf-lora --out=edited
    jaxedit export runs/gpt2-xl --after_step=40 --out=edited --push=OWNER/NAME
    jaxedit export edit.safetensors --format=hf --dtype=bfloat16 --out=edited

RUN|FILE is a study's work directory (with the edits it kept, or those of --run_steps) or a file of
`jaxedit edit --save`. Nothing is written where the folder is not empty.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from jaxedit.cli._flags import (
    FLAGS,
    edited_flags,
    json_flag,
    load_edited,
    path_flag,
    process_flags,
    say_edits,
)
from jaxedit.cli._output import print_json, results_console, show_table

if TYPE_CHECKING:
    from jaxedit.exports.export import Exported

ARGUMENTS = ("[RUN|FILE]",)


def define_flags() -> None:
    """Define the flags of this command."""
    process_flags()
    edited_flags()
    flags.DEFINE_string("model", None, "the model of a saved edit, where its file does not say it")
    flags.DEFINE_string("mesh", None, "devices, e.g. data:4,model:2; else those of the study")
    flags.DEFINE_string("format", "peft", "peft, hf, gguf-lora or delta")
    path_flag("out", None, "the folder to write; new, or empty")
    flags.DEFINE_string(
        "dtype",
        None,
        "of what is written: float32, bfloat16 or float16; else of hf the base's own, of others "
        "float32",
    )
    flags.DEFINE_integer("rank", 512, "the highest rank of an adapter; more is cut to it by an SVD")
    path_flag(
        "base", None, "the HF model's folder or hub id, where the edited one was a .gguf file"
    )
    flags.DEFINE_string("push", None, "upload the folder to OWNER/NAME on the Hugging Face hub")
    json_flag()


def main(place: str | None = None) -> None:
    """Export and print what was written.

    Args:
      place: the study's folder or the saved edit; None: --run or --edit names it.
    """
    from jaxedit.exports.export import check_options, export
    from jaxedit.remote import is_remote

    # What is asked, before a model is loaded.
    if place is not None:
        if FLAGS.run or FLAGS.edit:
            raise ValueError(f"{place} and --run or --edit exclude each other: give one of them")
        FLAGS["run" if Path(place).is_dir() or is_remote(place) else "edit"].value = place
    if not FLAGS.run and not FLAGS.edit:
        raise ValueError("name what to export: a study's work directory, or a saved edit")
    if not FLAGS.out:
        raise ValueError("--out is missing, e.g. --out=edited")
    options = dict(dtype=FLAGS.dtype, rank=FLAGS.rank, push=FLAGS.push)
    check_options(FLAGS.out, FLAGS.format, **options)

    edited = load_edited()  # --dtype is of what is written, not of the weights here
    say_edits(edited)
    exported = export(edited, FLAGS.out, FLAGS.format, base=FLAGS.base, **options)
    if FLAGS.json:
        print_json({"format": FLAGS.format, **to_dict(exported)})
    else:
        show(exported)


def to_dict(exported: "Exported") -> dict:
    """Return what was written as plain values."""
    return {
        "folder": str(exported.folder),
        "weights": [weight._asdict() for weight in exported.weights],
        "dtype": exported.dtype,
        "measured": exported.measured._asdict(),
        "measured_after_rounding": exported.after and exported.after._asdict(),
        "commands": [command._asdict() for command in exported.commands],
        "url": exported.url,
    }


def show(exported: "Exported") -> None:
    """Print the weights as a table, and the ready commands."""
    rows = [
        [
            weight.name,
            str(weight.layer),
            "–" if weight.rank is None else str(weight.rank),
            weight.error_text,
        ]
        for weight in exported.weights
    ]
    show_table(("weight", "layer", "rank", "error"), rows, left=("weight",))
    console = results_console()
    console.print(f"\nWritten to {exported.folder}; its README.md is the model card.")
    if exported.after is not None:
        show_rounding(exported)
    if exported.url:
        console.print(f"Uploaded to {exported.url}")
    for command in exported.commands:
        if command.language:
            console.print(f"\n{command.program}:\n")
        else:
            console.print()
        print(command.text.rstrip())  # as it stands: no line is broken


def show_rounding(exported: "Exported") -> None:
    """Print what the edited model gave before it was written, and what was written gives."""
    from jaxedit.reports.formatting import format_number

    versions = [each for each in (exported.measured, exported.after) if each is not None]
    rows = []
    if all(each.perplexity is not None for each in versions):
        rows.append(["perplexity", *(format_number(each.perplexity) for each in versions)])
    if exported.measured.probability_new:
        means = (sum(each.probability_new) / len(each.probability_new) for each in versions)
        n_facts = len(exported.measured.probability_new)
        name = "P(target)" if n_facts == 1 else f"P(target), mean of {n_facts} facts"
        rows.append([name, *(f"{mean:.4g}" for mean in means)])
    if rows:
        print()
        header = ["", "edited model", f"as written, in {exported.dtype}"]
        show_table(header, rows, left=("",))
