"""Gather second moments of MLP keys, which MEMIT and its relatives weigh their updates by.

jaxedit stats --layers=4,5,6,7,8 --corpus=wikipedia.txt --out=stats.safetensors jaxedit stats
--model=gpt2-xl-directory --layers=13,14,15,16,17 --corpus=datasets:wikimedia/wikipedia,20231101.en
--tokens=0 jaxedit stats --layers=5 --corpus=wikipedia.txt --check

10 x F tokens (the default) are quick, but leave the smallest eigenvalues at about half of their
true size and make the large ones too large. A threshold deep among the small ones, as AlphaEdit's
is meant, then counts too many directions as free; one above most of them too few. The published
configurations used 100,000 texts of Wikipedia.

--check gathers four times as many tokens from the corpus' other texts and says how far off the
smaller sample is: the error of the matrices, the ratio of the eigenvalues by tenths (below 1: too
small), and the shares below 2e-2. The larger sample errs too, half as much, so the error comes out
an eighth too large, and the smallest ratios nearer to 1 than they truly are.

A corpus with fewer tokens than asked for is used whole with a warning; one with fewer than F is
refused, since the matrix would be singular. An interrupted run goes on with the same command. --npz
names its files after the number of texts read: the other repositories take them with that number as
`mom2_n_samples`."""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, layer_numbers, load_model, model_flags
from jaxedit.cli._output import print_json
from jaxedit.distributed import is_first_process
from jaxedit.edits.edit import EDITED_WEIGHT

TOKENS_PER_WIDTH = 10
CHECK_TIMES = 4


def define_flags() -> None:
    """The flags of this command."""
    model_flags()
    flags.DEFINE_list("layers", ["5"], "the layers, with commas between them")
    flags.DEFINE_string(
        "corpus", "builtin", "a text file, a directory of them, or datasets:NAME,CONFIG,SPLIT"
    )
    flags.DEFINE_integer(
        "texts",
        None,
        "at most so many texts of a data set; absent: all of a file, 100,000 of a data set",
    )
    flags.DEFINE_integer("tokens", None, "how many tokens; absent: 10 x F; 0: all")
    flags.DEFINE_integer(
        "length", None, "texts are cut after so many tokens; absent: after the model's positions"
    )
    flags.DEFINE_integer("seed", 0, "of the texts' order")
    flags.DEFINE_string("out", "stats.safetensors", "the file to write")
    flags.DEFINE_string(
        "npz", None, "also write the form of the ROME and EasyEdit repositories to this directory"
    )
    flags.DEFINE_bool(
        "check",
        False,
        "gather a larger sample from the other texts, and say how far off the first is",
    )
    json_flag()


def main() -> None:
    """Gathers, writes, prints."""
    from jaxedit.datasets import HUB_PREFIX, read_corpus
    from jaxedit.stats.npz import write_npz

    layers = layer_numbers("layers")
    n_texts = FLAGS.texts or (100000 if FLAGS.corpus.startswith(HUB_PREFIX) else None)
    texts = read_corpus(FLAGS.corpus, n_texts)[: FLAGS.texts]
    if FLAGS.check and FLAGS.tokens == 0:
        raise ValueError(
            "--check needs a number of --tokens: all of them leave no other texts to check against"
        )
    model = load_model()
    wanted = TOKENS_PER_WIDTH * model.config.F if FLAGS.tokens is None else FLAGS.tokens
    out = Path(FLAGS.out)
    stats = collect_with_progress(
        model, texts, layers, wanted, FLAGS.seed, out.with_suffix(".part")
    )
    if is_first_process():
        stats.save(out)
    if FLAGS.npz and is_first_process():
        name = model.metadata.tensor_names[EDITED_WEIGHT][0].removesuffix(".weight").format(l="{}")
        write_npz(
            Path(FLAGS.npz), dict(stats.moments), stats.n_tokens, name, stats.made_from["n_texts"]
        )
    result = {
        "out": str(out),
        "n_tokens": stats.n_tokens,
        "layers": {str(l): spectrum(stats.moments[l]) for l in stats.moments},
    }
    if FLAGS.check:
        result["check"] = compare_with_larger_sample(
            model, texts, stats, CHECK_TIMES * wanted, out.with_suffix(".check.part")
        )
    if FLAGS.json:
        print_json(result)
    else:
        show(result)


def compare_with_larger_sample(
    model, texts: list[str], stats, n_tokens: int, part: Path
) -> dict[str, Any]:
    """Compares with a sample of texts that the first one did not read.

    Raises:
      ValueError: where these hold fewer tokens than the second moments are wide.
    """
    from jaxedit.stats.collect import shuffle_texts
    from jaxedit.stats.second_moments import compare_stats

    n_read = stats.made_from["n_texts_read"]
    others = shuffle_texts(texts, FLAGS.seed)[n_read:]
    if not others:
        raise ValueError(
            f"--check: the first sample read all {n_read} texts of {FLAGS.corpus}; give fewer --tokens"
        )
    larger = collect_with_progress(model, others, list(stats.moments), n_tokens, FLAGS.seed, part)
    return {"n_tokens": larger.n_tokens, "layers": compare_stats(stats, larger)}


def collect_with_progress(
    model, texts: list[str], layers: list[int], n_tokens: int, seed: int, part: Path
):
    """Collects with a progress bar on standard error.

    Raises:
      ValueError: where the corpus is too small for second moments of full rank.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    import jaxedit

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=not is_first_process())) as bar:
        task = bar.add_task("second moments", total=None)
        stats = jaxedit.collect_stats(
            model,
            texts,
            layers,
            max_tokens=n_tokens or None,
            max_length=FLAGS.length,
            seed=seed,
            corpus=FLAGS.corpus,
            resume=part,
            on_tokens=lambda done, total: bar.update(task, completed=done, total=total),
        )
    F = model.config.F
    if stats.n_tokens < F:
        raise ValueError(
            f"{FLAGS.corpus} gave {stats.n_tokens:,} tokens, fewer than the {F:,} that the second moments are wide; give a "
            f"larger --corpus ({TOKENS_PER_WIDTH * F:,} tokens are the default)"
        )
    if n_tokens and stats.n_tokens < n_tokens:
        print_warning(
            f"{FLAGS.corpus} holds {stats.n_tokens:,} tokens, fewer than the {n_tokens:,} asked for; all were taken"
        )
    return stats


def print_warning(text: str) -> None:
    """A line on standard error."""
    import logging

    logging.getLogger("jaxedit").warning(text)


def spectrum(cov_FF: np.ndarray) -> dict[str, float]:
    """What a matrix is like."""
    value_F = np.linalg.eigvalsh(np.asarray(cov_FF, np.float64))
    smallest, largest = float(value_F[0]), float(value_F[-1])
    condition = largest / smallest if smallest > 0 else float("inf")
    return {
        "trace": float(value_F.sum()),
        "largest": largest,
        "smallest": smallest,
        "condition": condition,
    }


def show(result: dict) -> None:
    """The result for people."""
    from rich.console import Console
    from rich.table import Table

    from jaxedit.reports.formatting import format_number

    console = Console()
    tables = {f"{result['n_tokens']:,} tokens, {result['out']}": result["layers"]}
    if "check" in result:
        checked = result["check"]["layers"]
        tables[f"against {result['check']['n_tokens']:,} tokens of other texts"] = {
            layer: {name: value for name, value in numbers.items() if name != "tenth_ratios"}
            for layer, numbers in checked.items()
        }
        tables["ratio of the eigenvalues by tenths, the smallest first"] = {
            layer: {str(i): ratio for i, ratio in enumerate(numbers["tenth_ratios"], 1)}
            for layer, numbers in checked.items()
        }
    for title, rows in tables.items():
        table = Table(
            box=None, header_style="bold", pad_edge=False, title=title, title_justify="left"
        )
        table.add_column("layer", justify="right")
        for name in next(iter(rows.values())):
            table.add_column(name, justify="right")
        for layer, numbers in rows.items():
            table.add_row(str(layer), *map(format_number, numbers.values()))
        console.print(table)
