"""Measure each phase of a study on this machine, beside the rate at which it multiplies matrices.

jaxedit bench                        SmolLM2-135M on the built-in texts and facts
jaxedit bench --texts=ME-PPL_50.json --facts=counterfact.json --n_requests=1000 --json
jaxedit bench --growth=growth.png    an edit after 1 to 1000 others, more and more texts
jaxedit bench --profile=trace        a trace of an edit with its perplexity, for TensorBoard

Beside each phase stand the shares that its useful products have of the matmul rate, and the bytes
that it must move of the rate of memory: the larger one says what bounds it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from jaxedit.cli._flags import (
    FLAGS,
    check_edited_flags,
    edited_flags,
    json_flag,
    load_edited,
    model_flags,
    path_flag,
)
from jaxedit.cli._output import print_json
from jaxedit.files import read_json

if TYPE_CHECKING:
    from jaxedit.bench import BenchConfig, Phase


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    edited_flags()
    flags.DEFINE_integer(
        "layer",
        None,
        "the layer to edit; absent: the one published for ROME and the model",
        lower_bound=0,
    )
    flags.DEFINE_integer("v_num_grad_steps", 20, "of the value's optimisation", lower_bound=1)
    path_flag("templates", None, "a JSON list of context templates; absent: sampled from the model")
    path_flag("facts", "builtin", "requests whose keys are computed in bulk")
    flags.DEFINE_integer("n_requests", 40, "how many of them", lower_bound=1)
    path_flag("texts", "builtin", "texts for the perplexity: a .json, .jsonl or .txt file")
    path_flag("growth", None, "measure growth instead, and draw it to this .png file")
    path_flag("profile", None, "also write a trace of an edit with its perplexity to this folder")
    json_flag()


def main() -> None:
    """Measure and print."""
    from jaxedit.bench import run_bench, scaling
    from jaxedit.reports.comparison_figures import scaling_figure
    from jaxedit.reports.figures import save_figure

    config = config_of_flags()
    if FLAGS.growth:
        found = scaling(config)
        save_figure(scaling_figure(found), Path(FLAGS.growth))
        if FLAGS.json:
            print_json(found)
            return
        for name, title in (("edits", "edits before"), ("tokens", "tokens")):
            print(
                "\n".join(f"{count:>8,} {title}: {time_s:7.3f} s" for count, time_s in found[name])
            )
        return
    found = run_bench(config, (lambda phase: None) if FLAGS.json else show)
    if FLAGS.json:
        print_json(found)
        return
    print(
        f"\n{found['device']}, matmul {found['matmul_gflops']:.0f} GFLOP/s "
        f"at width {found['matmul_width']}, memory {found['memory_gb_per_s']:.1f} GB/s"
    )


def config_of_flags() -> "BenchConfig":
    """Read what the flags ask to measure."""
    from jaxedit.bench import BenchConfig
    from jaxedit.datasets import read_requests, read_texts
    from jaxedit.edits.request import Request

    templates = None
    if FLAGS.templates:
        templates = read_json(Path(FLAGS.templates), list)
        if not all(isinstance(template, str) for template in templates):
            raise ValueError(
                f"--templates={FLAGS.templates}: expected a JSON list of texts with one {{}} each"
            )
    check_edited_flags()
    edited = load_edited(FLAGS.dtype) if FLAGS.run or FLAGS.edit else None
    return BenchConfig(
        model=edited.source if edited else FLAGS.model,
        mesh=FLAGS.mesh,
        dtype=FLAGS.dtype,
        layer=FLAGS.layer,
        v_num_grad_steps=FLAGS.v_num_grad_steps,
        templates=None if templates is None else tuple(templates),
        request=Request("{} is based in", "BP", "Munich"),
        requests=read_requests(FLAGS.facts).requests[: FLAGS.n_requests],
        texts=read_texts(FLAGS.texts),
        edits=edited.model.metadata.history if edited else (),
        profile=FLAGS.profile,
    )


def show(phase: "Phase") -> None:
    """Print a phase in one line."""
    shares = ""
    if phase.share is not None and phase.bandwidth_share is not None:
        shares = f"{100 * phase.share:4.0f} % of the matmul rate, "
        shares += f"{100 * phase.bandwidth_share:.0f} % of the memory's"
    print(
        f"{phase.name:22s}{phase.time_s:9.4f} s  {shares:44s}"
        f"{phase.peak_bytes / 1e9:6.2f} GB  {phase.about}",
        flush=True,
    )
