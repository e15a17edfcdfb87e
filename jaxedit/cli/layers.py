"""Find the layer to edit, by single edits of some facts at each layer.

    jaxedit layers --model=gemma3-270m --facts=counterfact.json --texts=ME-PPL_50.json
    jaxedit layers --layers=3-8 --n_facts=20 --method=c-rome --json

Chosen is, among the layers of whose edits 95 % leave the perplexity under --max_ratio times the
unedited one, that after which most facts are said on their prompts and paraphrases. Every layer is
a study in the work directory: finished ones are not run again, an interrupted one goes on.
"""

from absl import flags

from jaxedit.cli._flags import (
    FLAGS,
    apply_set,
    json_flag,
    load_model,
    model_flags,
    path_flag,
    set_flag,
    step_numbers,
)
from jaxedit.cli._output import StepBar, print_json, show_table


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    flags.DEFINE_string("method", "rome", "the editing method")
    flags.DEFINE_list("layers", [], "these, e.g. 1,3,5-8; absent: all but the last")
    path_flag("facts", "builtin", "facts to write, each by itself")
    flags.DEFINE_integer("n_facts", 50, "so many of them, from the first on", lower_bound=1)
    path_flag("texts", "builtin", "for the perplexity: a .json, .jsonl or .txt file")
    path_flag("stats", None, "second moments of the layers; absent: C = I")
    about = "an edit is safe under so many times the perplexity"
    flags.DEFINE_float("max_ratio", 1.02, about, lower_bound=1)
    path_flag("workdir", "runs/layers", "where the studies go")
    set_flag()
    json_flag()


def main() -> None:
    """Run the studies, show the curve and the choice."""
    from jaxedit.analyses.layer_choice import SAFE_SHARE, choose_layer, judge_layer
    from jaxedit.distributed import own_workdir, process_workdir
    from jaxedit.reports.records import edit_steps
    from jaxedit.study.journal import read_journal
    from jaxedit.study.loop import run_study
    from jaxedit.study.mirror import local_workdir

    layers = step_numbers("layers") or list(range(load_model().config.L - 1))
    results = []
    with local_workdir(FLAGS.workdir) as local, own_workdir(folder := process_workdir(local)):
        for layer in layers:
            with StepBar(single=True) as bar:
                run_study(_config(layer), folder / f"layer_{layer}", bar.show_step)
            records = edit_steps(read_journal(folder / f"layer_{layer}"))
            results.append(judge_layer(layer, records, FLAGS.max_ratio))
    chosen = choose_layer(results)

    if FLAGS.json:
        curve = [result._asdict() for result in results]
        print_json({"chosen": chosen and chosen.layer, "layers": curve})
        return
    rows = [
        [
            f"{result.layer}{' *' if result is chosen else ''}",
            f"{result.share_within:.0%}",
            f"{result.mean_accuracy:.0%}",
            f"{result.accuracy:.0%}",
            "–" if result.paraphrase_accuracy is None else f"{result.paraphrase_accuracy:.0%}",
            f"{result.median_ratio:,.4g}",
            f"{result.highest_ratio:,.4g}",
            f"{result.perturbation:.3g}",
        ]
        for result in results
    ]
    under = f"under {FLAGS.max_ratio:g}"
    accuracies = ["mean accuracy", "accuracy", "paraphrase accuracy"]
    show_table(["layer", under, *accuracies, "median", "highest", "perturbation"], rows)
    if chosen is None:
        print(f"\nAt no layer {SAFE_SHARE:.0%} of the edits stay {under} times the perplexity.")
    else:
        print(f"\nChosen: layer {chosen.layer} (--layer={chosen.layer}, editor.layer in a study)")


def _config(layer: int):
    """Make the configuration of a layer's study."""
    from jaxedit.editors import hyper_defaults, layer_field
    from jaxedit.study.config import default_config

    default_config(FLAGS.method)  # an unknown method is named before anything is asked of it
    field = layer_field(FLAGS.method)
    at = {field: layer if field == "layer" else [layer]}
    if "mom2_adjustment" in hyper_defaults(FLAGS.method):
        at["mom2_adjustment"] = bool(FLAGS.stats)
    config = default_config(FLAGS.method, **at)
    config.model, config.dtype, config.mesh = FLAGS.model, FLAGS.dtype, FLAGS.mesh
    config.facts, config.n_facts, config.texts = FLAGS.facts, FLAGS.n_facts, FLAGS.texts
    config.stats, config.mode = FLAGS.stats or "", "single"
    apply_set(config)
    config.update(eval=dict(perplexity_every=1))  # by which each edit is judged
    return config
