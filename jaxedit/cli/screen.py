"""Rank facts by the damage that a rank-one edit of each would do, before any is made.

    jaxedit screen --config.facts=counterfact.json               the built-in model, ROME
    jaxedit screen --config=single_edits --facts=counterfact.json --facts=mine.json \\
        --hard_out=hard.json --normal_out=normal.json

Forward passes alone: a thousand facts take less than four single edits. --hard_out gets the flagged
facts, worst first, and --normal_out as many others; both are files for --config.facts.
"""

import math
from pathlib import Path

from absl import flags

from jaxedit.cli._flags import (
    FLAGS,
    apply_set,
    apply_start,
    config_flag,
    edited_flags,
    json_flag,
    path_flag,
    path_multi_flag,
    process_flags,
    set_flag,
)
from jaxedit.cli._output import print_json, show_table
from jaxedit.distributed import is_first_process

# A study's own screening would predict its facts once more; no edit is made or predicted.
NO_EDITS = dict(
    alternatives=(), harm_texts="", screening="", eval=dict(perplexity_every=1, prediction_draws=0)
)


def define_flags() -> None:
    """Define the flags of this command."""
    config_flag()
    set_flag()
    edited_flags()
    path_multi_flag("facts", "facts to rank; absent: those of the configuration")
    flags.DEFINE_float(
        "threshold",
        None,
        "a predicted relative perturbation over this flags a fact; absent: "
        "guard.max_relative_perturbation",
    )
    path_flag("hard_out", None, "write the flagged facts to this file")
    path_flag("normal_out", None, "write as many that are not to this file")
    flags.DEFINE_integer("top", 20, "how many to show", lower_bound=1)
    process_flags()
    json_flag()


def read_threshold(default: float | None) -> float:
    """Read --threshold, or take the guard's limit.

    Raises:
      ValueError: where it is no positive number.
    """
    threshold = default if FLAGS.threshold is None else FLAGS.threshold
    if threshold is None or not 0 < threshold < math.inf:
        raise ValueError(
            f"--threshold={threshold}: expected a positive number, over which a fact is flagged"
        )
    return threshold


def main() -> None:
    """Rank, write and show."""
    from jaxedit.datasets import read_requests
    from jaxedit.metrics.baseline import check_baseline
    from jaxedit.metrics.perplexity import perplexity
    from jaxedit.study.context import build_context
    from jaxedit.study.screening import hard_and_normal, predict_damage, write_facts

    # What is ranked, by which editor, and over which number a fact is flagged.
    config = FLAGS.config
    apply_set(config)
    apply_start(config)
    threshold = read_threshold(config.guard.max_relative_perturbation)
    if FLAGS.facts:  # those of the configuration may be what this command is to write
        config.update(facts=FLAGS.facts[0], n_facts=0)
    config.update(NO_EDITS)
    context = build_context(config, None)
    requests = [request for source in FLAGS.facts for request in read_requests(source).requests]
    requests = requests or [request for batch in context.batches for request in batch]

    # Damage to a model that is broken already cannot be predicted.
    score = perplexity(context.unedited, context.texts)
    check_baseline(context.unedited, score, context.texts)

    # The predictions, and the files of hard and normal facts.
    predictions = predict_damage(
        context.unedited, requests, context.editor, context.initial_state, context.key_probe
    )
    hard, normal = hard_and_normal(predictions, threshold)
    if is_first_process():
        for path, chosen in ((FLAGS.hard_out, hard), (FLAGS.normal_out, normal)):
            if path:
                write_facts(Path(path), chosen)

    # The ranking, worst first.
    ranked = sorted(predictions, key=lambda each: -each.predicted)
    if FLAGS.json:
        ranking = [
            {**each._asdict(), "request": each.request.summary, "case_id": each.request.case_id}
            for each in ranked
        ]
        print_json({"threshold": threshold, "n_flagged": len(hard), "ranking": ranking})
        return
    rows = [
        [
            str(place),
            each.request.summary,
            f"{each.predicted:.3g}",
            f"{each.denominator:.3g}",
            f"{each.key_ratio:.2f}",
        ]
        for place, each in enumerate(ranked[: FLAGS.top], 1)
    ]
    show_table(["#", "edit", "predicted", "|u·k|", "|k| / |k̄|"], rows)
    print(
        f"\n{len(hard)} of {len(predictions)} facts have a predicted relative perturbation over "
        f"{threshold:g}."
    )
