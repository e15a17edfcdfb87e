"""Rank facts by the damage that a rank-one edit of each would do, before any is made.

jaxedit screen --config.facts=counterfact.json                     the built-in model, ROME at layer 5
jaxedit screen --config=configs/single_edits.py --facts=counterfact.json --facts=mine.json --hard=hard.json --normal=normal.json

Forward passes alone: a thousand facts take less than four single edits. `--hard` gets the flagged
ones, worst first, and `--normal` as many others; both are files for `--config.facts`."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxedit.cli._flags import FLAGS, json_flag, process_flags
from jaxedit.cli._output import print_json, show_table
from jaxedit.distributed import is_first_process
from jaxedit.study.config import built_in_config


def define_flags() -> None:
    """The flags of this command."""
    config_flags.DEFINE_config_file(
        "config", str(built_in_config()), "a configuration file, PATH or PATH:ARGUMENT"
    )
    flags.DEFINE_multi_string("facts", [], "facts to rank; absent: those of the configuration")
    flags.DEFINE_float(
        "limit", None, "a prediction over this flags a fact; guard.max_relative_perturbation"
    )
    flags.DEFINE_string("hard", None, "write the flagged facts to this file")
    flags.DEFINE_string("normal", None, "write as many that are not to this file")
    flags.DEFINE_integer("top", 20, "how many to show")
    process_flags()
    json_flag()


def main() -> None:
    """Ranks, writes and shows."""
    from jaxedit.datasets import read_requests
    from jaxedit.study.context import build_context
    from jaxedit.study.screening import hard_and_normal, predict_damage, write_facts

    config = FLAGS.config
    limit = FLAGS.limit or config.guard.max_relative_perturbation
    if not limit or limit <= 0:
        raise ValueError(
            f"--limit={limit}: expected a positive number, over which a fact is flagged"
        )
    setting, state, _ = build_context(config, None)
    requests = [request for source in FLAGS.facts for request in read_requests(source).requests]
    requests = requests or [request for batch in setting.batches for request in batch]
    found = predict_damage(setting.unedited, requests, setting.editor, state, setting.probes)
    hard, normal = hard_and_normal(found, limit)
    if is_first_process():
        for path, chosen in ((FLAGS.hard, hard), (FLAGS.normal, normal)):
            if path:
                write_facts(Path(path), chosen)
    ranked = sorted(found, key=lambda each: -each.predicted)
    if FLAGS.json:
        rows = [
            {**each._asdict(), "request": each.request.summary, "case_id": each.request.case_id}
            for each in ranked
        ]
        print_json({"limit": limit, "n_flagged": len(hard), "ranking": rows})
        return
    cells = [
        [
            str(i),
            each.request.summary,
            f"{each.predicted:.3g}",
            f"{each.denominator:.3g}",
            f"{each.key_ratio:.2f}",
        ]
        for i, each in enumerate(ranked[: FLAGS.top], 1)
    ]
    show_table(["#", "edit", "predicted", "|u·k|", "|k| / |k̄|"], cells)
    print(
        f"\n{len(hard)} of {len(found)} facts are predicted to push the texts by more than {limit:g}."
    )
