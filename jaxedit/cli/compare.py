"""Run the variants of a configuration as studies one after the other, and compare them.

    jaxedit compare --config=sequential --set=stats=stats.safetensors
    jaxedit compare --config=sequential --variants=rome,memit --workdir=runs/two

The file offers VARIANTS, the arguments of its get_config. Finished studies are not run again, an
interrupted one goes on.
"""

from absl import flags

from jaxedit.cli._flags import (
    FLAGS,
    apply_set,
    config_flag,
    json_flag,
    path_flag,
    process_flags,
    reference_flag,
    set_flag,
)
from jaxedit.cli._output import StepBar, print_json, show_table


def define_flags() -> None:
    """Define the flags of this command."""
    config_flag(None)
    flags.DEFINE_list("variants", None, "only these, with commas between them; absent: all")
    set_flag()
    path_flag("workdir", None, "where the studies go; runs/NAME OF THE CONFIGURATION")
    reference_flag()
    process_flags()
    json_flag()


def main() -> None:
    """Run the studies and show the comparison."""
    from jaxedit.distributed import own_workdir, process_workdir
    from jaxedit.reports.comparison import comparison_header, comparison_row, write_comparison
    from jaxedit.reports.curves import read_curves
    from jaxedit.reports.studies import read_studies
    from jaxedit.study.config import read_config, read_variants
    from jaxedit.study.config_file import find_config
    from jaxedit.study.loop import run_study
    from jaxedit.study.mirror import local_workdir

    if not FLAGS.config:
        raise ValueError("--config is missing, e.g. --config=sequential")
    path = find_config(FLAGS.config)
    variants = read_variants(path, FLAGS.variants)
    workdir = FLAGS.workdir or f"runs/{path.stem}"

    # A study a variant; those that are finished add nothing. What they say beside each other.
    with local_workdir(workdir) as local, own_workdir(folder := process_workdir(local)):
        for name in variants:
            config = read_config(path, name)
            apply_set(config)
            with StepBar(single=config.mode == "single") as bar:
                run_study(config, folder / name, bar.show_step)
        studies = read_studies(folder, variants)
        title, curves = f"{path.stem}: {', '.join(variants)}", read_curves(FLAGS.reference)
        written = write_comparison(folder, title, studies, curves)
    header = comparison_header(studies)
    rows = [comparison_row(study, studies) for study in studies]
    if FLAGS.json:
        print_json({"workdir": str(folder), "header": header, "rows": rows})
        return
    show_table(header, rows)
    print(f"\nReport: {written}   Figure: {folder / 'comparison.png'}")
