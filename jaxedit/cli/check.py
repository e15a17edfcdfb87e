"""Tell whether an adapter damages a model: one page, exit status 0 (no damage) or 1 (damage).

    jaxedit check my-lora --model=HuggingFaceTB/SmolLM2-135M-Instruct
    jaxedit check my-lora --model=BASE --facts=facts.json --tasks=piqa --limit=200
    jaxedit check deltas.pt --model=gpt2-xl-directory --json

ADAPTER is a PEFT LoRA adapter's folder; a .safetensors, .npz or torch file of changes by the names
of HF weights, the `deltas` of the ROME and MEMIT repositories among them; or the folder of an HF
checkpoint, of which the difference to the model is taken. The verdict is the guard's of a study:
damage is a perplexity of more than twice the model's own.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxedit.cli._flags import (
    FLAGS,
    json_flag,
    load_model,
    model_flags,
    path_flag,
    prediction_flag,
)
from jaxedit.cli._output import print_json, results_console, show_table

if TYPE_CHECKING:
    from jaxedit.imports.adapter import ChangedWeight, ImportedAdapter
    from jaxedit.imports.check import AdapterCheck

ARGUMENTS = ("ADAPTER",)
FACTS_SHOWN = {
    "probability_new": "P(new)",
    "efficacy_accuracy": "facts reproduced",
    "paraphrase_accuracy": "paraphrases reproduced",
    "neighbourhood_accuracy": "neighbours reproduced",
}


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    path_flag("texts", "builtin", "for the perplexity: a .json, .jsonl or .txt file")
    path_flag("facts", None, "facts to ask both models: a file, address or data set")
    flags.DEFINE_list("tasks", [], "names of lm-eval's tasks, with commas between them")
    flags.DEFINE_integer("limit", None, "at most so many items of each task", lower_bound=1)
    path_flag("task_path", None, "a directory with task files of your own")
    prediction_flag()
    flags.DEFINE_enum(
        "orientation",
        None,
        ["hf", "transposed"],
        "how square matrices lie that say nothing of it: hf (as in an HF checkpoint) or transposed",
    )
    json_flag()


def main(adapter: str) -> int:
    """Import, measure, print; return 1 where the adapter damages the model."""
    from jaxedit.datasets import read_requests, read_texts
    from jaxedit.imports.adapter import import_adapter
    from jaxedit.imports.check import check_adapter

    start = time.perf_counter()
    texts = read_texts(FLAGS.texts)
    requests = read_requests(FLAGS.facts).requests if FLAGS.facts else []
    model = load_model()
    imported = import_adapter(model, adapter, FLAGS.orientation)
    found = check_adapter(
        model,
        imported,
        texts,
        requests,
        FLAGS.tasks,
        limit=FLAGS.limit,
        task_path=Path(FLAGS.task_path) if FLAGS.task_path else None,
        prediction_draws=FLAGS.prediction_draws,
    )
    result = describe(adapter, imported, found, len(texts), time.perf_counter() - start)
    if FLAGS.json:
        print_json(result)
    else:
        show(result, imported.weights)
    return int(found.is_damaging)


def describe(
    adapter: str,
    imported: "ImportedAdapter",
    found: "AdapterCheck",
    n_texts: int,
    time_s: float,
) -> dict[str, Any]:
    """Put all that is said into one dictionary; pairs are without the adapter, with it."""
    return {
        "adapter": adapter,
        "model": FLAGS.model,
        "weights": [weight._asdict() for weight in imported.weights],
        "is_imported_base": bool(imported.added_to_base),
        "fingerprint": imported.model.fingerprint,
        "n_texts": n_texts,
        "perplexity": {
            "mean": [score.mean for score in found.perplexity],
            "pooled": [score.pooled for score in found.perplexity],
            "ratio": found.ppl_ratio,
            "n_non_finite": found.perplexity[1].n_non_finite,
        },
        "kl_nats": found.kl_nats,
        "relative_perturbation": found.relative_perturbation,
        "delta_nll_nats": found.perplexity[1].paired_difference(found.perplexity[0])[0],
        "predicted_change": found.predicted_change and found.predicted_change.summary(),
        "limits": {
            "max_ppl_ratio": found.guard.max_ppl_ratio,
            "max_relative_perturbation": found.guard.max_relative_perturbation,
        },
        "facts": found.facts,
        "tasks": found.tasks,
        "is_damaging": found.is_damaging,
        "verdict": found.verdict,
        "time_s": round(time_s, 1),
    }


def show(result: dict[str, Any], weights: Sequence["ChangedWeight"]) -> None:
    """Print the page for people."""
    console = results_console()
    console.print(f"{result['adapter']} on {result['model']}\n")
    show_table(
        ["changed weight", "layers", "rank", "|ΔW| / |W|"],
        weight_rows(weights),
        left=("changed weight", "layers"),
    )
    console.print()
    show_table(["", "without", "with", "limit"], metric_rows(result), left=("",))
    if result["is_imported_base"]:
        console.print(
            "\nChanges of other weights than the MLP's second are in the base weights here, so "
            "damage cannot be predicted."
        )
    if result["perplexity"]["n_non_finite"]:
        n_bad = result["perplexity"]["n_non_finite"]
        console.print(f"\nThe loss of {n_bad} of {result['n_texts']} texts is not finite.")
    console.print(f"\nVerdict: {result['verdict']} ({result['time_s']} s)")


def weight_rows(weights: Sequence["ChangedWeight"]) -> list[list[str]]:
    """Make a row for each kind of weight: its layers, ranks and relative norms."""
    from jaxedit.reports.formatting import format_number, format_ranges

    kinds: dict[str, list[ChangedWeight]] = {}
    for weight in weights:
        kinds.setdefault(weight.pattern, []).append(weight)
    rows = []
    for pattern, found in kinds.items():
        layers = sorted(weight.layer for weight in found if weight.layer is not None)
        ranks = {weight.rank for weight in found}
        sizes = sorted(weight.rank or 0 for weight in found)
        norms = sorted(weight.relative_norm for weight in found)
        rows.append(
            [
                pattern,
                format_ranges(layers),
                "dense" if ranks == {None} else span(list(map(str, sizes))),
                span([format_number(norm) for norm in norms]),
            ]
        )
    return rows


def span(texts: list[str]) -> str:
    """Write the first and the last of sorted texts, or one where they are the same."""
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def metric_rows(result: dict[str, Any]) -> list[list[str]]:
    """Make the rows of what was measured without and with the adapter."""
    from jaxedit.reports.formatting import format_number

    score, limits = result["perplexity"], result["limits"]
    ratio = score["ratio"]
    shown, most = f"{ratio:.3f}" if ratio < 10 else format_number(ratio), limits["max_ppl_ratio"]
    rows = [
        ["perplexity, mean over texts", *map(format_number, score["mean"]), ""],
        ["perplexity, pooled", *map(format_number, score["pooled"]), ""],
        ["perplexity ratio (mean)", "", shown, format_number(most)],
        ["KL to the unedited model, nats a token", "", format_number(result["kl_nats"]), ""],
    ]
    perturbation = result["relative_perturbation"]
    rows.append(
        [
            "relative perturbation (predicts damage)",
            "",
            "not available" if perturbation is None else format_number(perturbation),
            format_number(limits["max_relative_perturbation"]),
        ]
    )
    if predicted := result["predicted_change"]:
        shown = f"{predicted['mean_nats']:.4f} ± {predicted['stderr_nats']:.4f}"
        rows.append(["change of the loss, predicted, nats a token", "", shown, ""])
        rows.append(["the same, measured", "", f"{result['delta_nll_nats']:.4f}", ""])
    for key, title in FACTS_SHOWN.items():
        pair = [metrics[key] for metrics in result["facts"] or ()]
        if pair and None not in pair:
            rows.append([title, *map(format_number, pair), ""])
    before, after = result["tasks"] or ({}, {})
    for task, numbers in before.items():
        for name in [name for name in numbers if name != "n" and not name.endswith("_stderr")]:
            pair = numbers[name], after[task][name]
            rows.append([f"{task}, {name}", *map(format_number, pair), ""])
    return rows
