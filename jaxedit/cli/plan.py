"""Say whether a study fits a TPU slice and how fast it could be there, without a TPU.

Every phase is compiled for it.

jaxedit plan --model=llama-2-7b --topology=v5e:2x4 --mesh=data:1,model:8
jaxedit plan --model=llama-3-70b --topology=v5p:4x4x4         the smallest mesh that fits
jaxedit plan --model=DIRECTORY --topology=local --json    this machine; no weights are read

Bytes are those of one device. Bounds are the longest of products, memory and collectives at the
chip's published rates: no program can be faster. Needs the TPU compiler: pip install
'jaxedit[plan]'."""

import sys
from typing import Any

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, whole_numbers
from jaxedit.cli._output import print_json


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string(
        "model",
        "llama-2-7b",
        "gpt2-xl, gpt-j-6b, llama-2-7b, llama-3-8b, llama-3-70b, qwen2.5-72b, or a directory",
    )
    flags.DEFINE_string(
        "topology", "v5e:2x4", "v4, v5e, v5p or v6e with a shape, e.g. v5p:4x4x4; or local"
    )
    flags.DEFINE_string("mesh", "", "devices, e.g. data:1,model:8; absent: the fewest that suffice")
    flags.DEFINE_string("dtype", "bfloat16", "of the stored weights")
    flags.DEFINE_list("layers", [], "the layers to edit; absent: published ones")
    flags.DEFINE_integer("n_requests", 100, "edited together")
    flags.DEFINE_integer("n_templates", 21, "context templates")
    flags.DEFINE_integer("v_num_grad_steps", 25, "of a value's optimisation")
    flags.DEFINE_integer("row_tokens", 128, "tokens of a row of texts")
    flags.DEFINE_bool(
        "suggest", True, "look for the smallest mesh that fits, also where --mesh is given"
    )
    json_flag()


def main() -> None:
    """Plan and print."""
    from jaxedit.plan.plan import PlanConfig, make_plan

    setup = PlanConfig(
        model=FLAGS.model,
        topology=FLAGS.topology,
        mesh=FLAGS.mesh,
        dtype=FLAGS.dtype,
        layers=tuple(whole_numbers("layers")) if FLAGS.layers else None,
        n_requests=FLAGS.n_requests,
        n_templates=FLAGS.n_templates,
        v_num_grad_steps=FLAGS.v_num_grad_steps,
        row_tokens=FLAGS.row_tokens,
        suggest=FLAGS.suggest,
    )
    found = make_plan(
        setup, lambda phase: print(f"compiled: {phase.name}", file=sys.stderr, flush=True)
    )
    if FLAGS.json:
        print_json(found)
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """Print the result for people."""
    from rich.console import Console
    from rich.table import Table

    chip, mesh = found["chip"], found["mesh"]
    splits = f"data:{mesh['data']},model:{mesh['model']}"
    title = f"{found['model']}, {found['dtype']}, {chip['name']}, {splits}"
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    table.add_column("phase")
    for name in ("held", "arguments", "temporaries", f"peak of {chip['hbm_bytes'] / 1e9:.0f} GB"):
        table.add_column(name, justify="right")
    for name in ("TFLOP", "GB moved", "GB sent", "bound, s"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for phase in found["phases"]:
        sizes = (
            phase[name] / 1e9
            for name in ("held_bytes", "argument_bytes", "temporary_bytes", "peak_bytes")
        )
        work = phase["flops"] / 1e12, phase["moved_bytes"] / 1e9, phase["sent_bytes"] / 1e9
        bound = "" if phase["bound_s"] is None else f"{phase['bound_s']:.4f}"
        numbers = (*(f"{size:.2f}" for size in sizes), *(f"{n:.3f}" for n in work), bound)
        table.add_row(phase["name"], *numbers, verdict(phase), end_section=False)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for phase in found["phases"]:
        console.print(f"{phase['name']}: {phase['about']}", highlight=False)
    small = found["smallest"]
    if small:
        splits = f"data:{small['mesh']['data']},model:{small['mesh']['model']}"
        compiled = " and ".join(small["compiled"])
        about = f"of all meshes of 1, 2, 4, ... chips; confirmed by compiling {compiled}"
        console.print(f"smallest mesh that fits: {splits} ({about})", highlight=False)


def verdict(phase: dict[str, Any]) -> str:
    """Whether it fits, and what bounds it."""
    parts = ["fits" if phase["fits"] else "does not fit"]
    if phase["bound_by"]:
        parts.append(f"bound by {phase['bound_by']}")
    if phase["unknown_loops"]:
        parts.append(f"{len(phase['unknown_loops'])} loops counted once: trip counts unknown")
    return ", ".join(parts)
