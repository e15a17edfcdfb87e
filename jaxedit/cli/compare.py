"""Run the variants of a configuration file as studies one after the other, and put them beside each
other.

    jaxedit compare --config=configs/sequential.py --stats=stats.safetensors
    jaxedit compare --config=configs/sequential.py --variants=rome,memit --workdir=runs/two

The file offers VARIANTS, the arguments of its get_config. Finished studies are not run again, an
interrupted one goes on."""

from pathlib import Path

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, process_flags, reference_flag
from jaxedit.cli._output import StepBar, print_json, show_table


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string(
        "config", None, "a configuration file with VARIANTS and get_config(variant)"
    )
    flags.DEFINE_list("variants", None, "only these, with commas between them; absent: all")
    flags.DEFINE_multi_string(
        "set",
        [],
        "KEY=VALUE, set in the configuration of every variant, e.g. --set=texts=ME-PPL_50.json",
    )
    flags.DEFINE_string("stats", None, "second moments from `jaxedit stats`")
    flags.DEFINE_string("workdir", None, "where the studies go; runs/NAME OF THE CONFIGURATION")
    reference_flag()
    process_flags()
    json_flag()


def main() -> None:
    """Runs the studies and shows the comparison."""
    from jaxedit.distributed import process_workdir
    from jaxedit.reports.comparison import comparison_header, comparison_row, write_comparison
    from jaxedit.reports.curves import read_curves
    from jaxedit.reports.outcomes import read_outcomes
    from jaxedit.study.config import read_config, read_variants
    from jaxedit.study.loop import run_study

    if not FLAGS.config:
        raise ValueError("--config is missing, e.g. --config=configs/sequential.py")
    path = Path(FLAGS.config)
    variants = read_variants(path, FLAGS.variants)
    folder = process_workdir(Path(FLAGS.workdir or f"runs/{path.stem}"))
    for name in variants:
        config = read_config(path, name)
        config.stats = FLAGS.stats or config.stats
        for text in FLAGS.set:
            set_key(config, text)
        with StepBar(single=config.mode == "single") as bar:
            run_study(config, folder / name, bar.step)
    outcomes = read_outcomes(folder, variants)
    written = write_comparison(
        folder, f"{path.stem}: {', '.join(variants)}", outcomes, read_curves(FLAGS.reference)
    )
    cells = [
        comparison_header(outcomes),
        *(comparison_row(outcome, outcomes) for outcome in outcomes),
    ]
    if FLAGS.json:
        print_json({"workdir": str(folder), "header": cells[0], "rows": cells[1:]})
        return
    show_table(cells[0], cells[1:])
    print(f"\nReport: {written}   Figure: {folder / 'comparison.png'}")


def set_key(config, text: str) -> None:
    """Sets KEY=VALUE, of the kind that the key has."""
    key, sign, value = text.partition("=")
    if not sign or key not in config or key in ("editor", "guard"):
        raise ValueError(
            f"--set={text}: expected KEY=VALUE with one of {', '.join(k for k in config if k != 'editor')}"
        )
    config[key] = int(value) if isinstance(config[key], int) else value
