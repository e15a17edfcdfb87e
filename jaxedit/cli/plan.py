"""Say whether a study fits a TPU slice and how fast it could be there, without a TPU.

Every phase is compiled for it.

jaxedit plan --model=llama-2-7b --topology=v5e:2x4 --mesh=data:1,model:8
jaxedit plan --model=llama-3-70b --topology=v5p:4x4x4         the smallest mesh that fits
jaxedit plan --model=DIRECTORY --topology=local --json    this machine; no weights are read

Bytes are those of one device. Bounds are the longest of products, memory and collectives of the
compiled program at the chip's published rates: it cannot be faster. The floor is what any program
would need: products of real tokens in one pass, each weight read once a step, activations once.
Needs the TPU compiler: pip install 'jaxedit[plan]'."""

import sys
from typing import Any

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, whole_numbers
from jaxedit.cli._output import print_json, results_console, show_table


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
    flags.DEFINE_list(
        "layers",
        [],
        "the layers to edit; absent: those published for MEMIT and the model, or where there are "
        "none five from an eighth of the depth on",
    )
    flags.DEFINE_integer("n_requests", 100, "edited together", lower_bound=1)
    flags.DEFINE_integer("n_templates", 21, "context templates", lower_bound=1)
    flags.DEFINE_integer("v_num_grad_steps", 25, "of a value's optimisation", lower_bound=1)
    flags.DEFINE_integer("row_tokens", 128, "tokens of a row of texts", lower_bound=1)
    flags.DEFINE_bool(
        "suggest", True, "look for the smallest mesh that fits, also where --mesh is given"
    )
    flags.DEFINE_float(
        "price", None, "of a chip-hour, in any currency: all phases once are priced", lower_bound=0
    )
    json_flag()


def main() -> None:
    """Plan and print."""
    from jaxedit.plan.plan import PlanConfig, make_plan

    config = PlanConfig(
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
        price=FLAGS.price,
    )
    found = make_plan(
        config, lambda phase: print(f"compiled: {phase.name}", file=sys.stderr, flush=True)
    )
    if FLAGS.json:
        print_json(found)
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """Print the result for people."""
    # A row a phase: what lies on a device, what the phase does, and whether it fits.
    chip, mesh = found["chip"], found["mesh"]
    sizes = ("held", "arguments", "temporaries", f"peak of {chip['hbm_bytes'] / 1e9:.0f} GB")
    times = ("bound, s", "floor, s", "bound / floor")
    header = ["phase", *sizes, "TFLOP", "GB moved", "GB sent", *times, "verdict"]
    rows = []
    for phase in found["phases"]:
        sizes = (
            phase[name] / 1e9
            for name in ("held_bytes", "argument_bytes", "temporary_bytes", "peak_bytes")
        )
        work = phase["flops"] / 1e12, phase["moved_bytes"] / 1e9, phase["sent_bytes"] / 1e9
        numbers = (*(f"{size:.2f}" for size in sizes), *(f"{n:.3f}" for n in work))
        rows.append([phase["name"], *numbers, *_times(phase), verdict(phase)])
    splits = f"data:{mesh['data']},model:{mesh['model']}"
    title = f"{found['model']}, {found['dtype']}, {chip['name']}, {splits}"
    show_table(header, rows, left=("phase", "verdict"), title=title)

    # What the phases are of, and the smallest mesh.
    console = results_console()
    for phase in found["phases"]:
        console.print(f"{phase['name']}: {phase['about']}")
    if found["chip_hours"] is not None:
        priced = "" if found["price"] is None else f", a price of {found['price']:.4g}"
        console.print(f"all phases once: {found['chip_hours']:.5f} chip-hours at least{priced}")
    small = found["smallest"]
    if small:
        splits = f"data:{small['mesh']['data']},model:{small['mesh']['model']}"
        compiled = " and ".join(small["compiled"])
        about = f"of all meshes of 1, 2, 4, ... chips; confirmed by compiling {compiled}"
        console.print(f"smallest mesh that fits: {splits} ({about})")


def _times(phase: dict[str, Any]) -> tuple[str, str, str]:
    """Show a phase's bound, its floor, and how many times the floor the bound is."""
    bound_s, floor_s = phase["bound_s"], phase["floor_s"]
    if bound_s is None:
        return "", "", ""
    return f"{bound_s:.4f}", f"{floor_s:.4f}", f"{bound_s / floor_s:.2f}"


def verdict(phase: dict[str, Any]) -> str:
    """Say whether a phase fits, and what bounds it."""
    parts = ["fits" if phase["fits"] else "does not fit"]
    if phase["bound_by"]:
        parts.append(f"bound by {phase['bound_by']}")
    if phase["unknown_loops"]:
        parts.append(f"{len(phase['unknown_loops'])} loops counted once: trip counts unknown")
    return ", ".join(parts)
