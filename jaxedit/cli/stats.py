"""Gather second moments of MLP keys, which MEMIT and its relatives weigh their updates by.

    jaxedit stats --layers=4,5,6,7,8 --corpus=wikipedia.txt --out=stats.safetensors
    jaxedit stats --model=gpt2-xl-directory --corpus=datasets:wikimedia/wikipedia,20231101.en \\
        --max_tokens=0
    jaxedit stats --layers=5 --corpus=wikipedia.txt --check
    jaxedit stats --layers=4,5 --corpus=wikipedia.txt --gradients

10 x F tokens (the default) are quick, but leave the smallest eigenvalues too small and make the
large ones too large (--check says by how much). A threshold deep among the small ones, as
AlphaEdit's is meant, then counts too many directions as free; one above most of them too few. The
published configurations used 100,000 texts of Wikipedia.

--check gathers four times as many tokens from the corpus' other texts and says how far off the
smaller sample is: the error of the matrices, the ratio of the eigenvalues by tenths (below 1: too
small), and the shares below 2e-2. The larger sample errs too, half as much, so the error comes out
an eighth too large, and the smallest ratios nearer to 1 than they truly are.

--value_norm also measures, at the last of the layers, the mean norm of the values that MEMIT finds
for facts on the unedited model, which NAS scales values to (`norm_anchor_scaling`). It is kept in
the same file.

    jaxedit stats --layers=4,5,6,7,8 --corpus=wikipedia.txt --value_norm --facts=counterfact.json

A corpus with fewer tokens than asked for is used whole with a warning; one with fewer than F is
refused, since the matrix would be singular. An interrupted run goes on with the same command. --npz
names its files after the number of texts read: the other repositories take them with that number as
`mom2_n_samples`.
"""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, load_model, model_flags, path_flag, whole_numbers
from jaxedit.cli._output import print_json, show_table
from jaxedit.cli._value_norm import measure_with_progress
from jaxedit.distributed import is_first_process, own_target

if TYPE_CHECKING:
    from jaxedit.models.model import Model
    from jaxedit.stats.second_moments import Stats

TOKENS_PER_WIDTH = 10
CHECK_TIMES = 4
HUB_TEXTS = 100_000  # of a data set, where --max_texts does not say


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    flags.DEFINE_list(
        "layers", None, "the layers, with commas; absent: those published for MEMIT on the model"
    )
    path_flag(
        "corpus", "builtin", "a text file, a directory of them, or datasets:NAME,CONFIG,SPLIT"
    )
    flags.DEFINE_integer(
        "max_texts",
        None,
        "at most so many texts; absent: all of a file, 100,000 of a data set",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "max_tokens", None, "how many tokens; absent: 10 x F; 0: all", lower_bound=0
    )
    flags.DEFINE_integer(
        "max_length",
        None,
        "texts are cut after so many tokens; absent: the model's positions",
        lower_bound=2,
    )
    flags.DEFINE_integer("seed", 0, "of the texts' order", lower_bound=0)
    path_flag("out", "stats.safetensors", "the file to write")
    path_flag(
        "npz", None, "also write the form of the ROME and EasyEdit repositories to this directory"
    )
    flags.DEFINE_bool(
        "gradients",
        False,
        "also E[g g^T] of output gradients, for crispedit: a pass through all layers and back",
    )
    flags.DEFINE_bool(
        "check", False, "gather a larger sample from the other texts, and compare the two"
    )
    flags.DEFINE_bool("value_norm", False, "measure the mean norm of facts' values, for NAS")
    flags.DEFINE_integer(
        "requests",
        None,
        "--value_norm: of so many facts; absent: 1,000, and 100 for the built-in model",
        lower_bound=2,
    )
    path_flag("facts", "builtin", "--value_norm: the requests that it draws from")
    json_flag()


def main() -> None:
    """Gather, write, print."""
    from jaxedit.datasets import HUB_PREFIX, read_corpus
    from jaxedit.editors import published_hyper

    # The texts, the model, and how many tokens are read.
    layers = whole_numbers("layers") if FLAGS.layers is not None else None
    is_hub = FLAGS.corpus.startswith(HUB_PREFIX)
    texts = read_corpus(FLAGS.corpus, FLAGS.max_texts or (HUB_TEXTS if is_hub else None))
    texts = texts[: FLAGS.max_texts]
    if FLAGS.check and FLAGS.max_tokens == 0:
        raise ValueError(
            "--check needs a number of --max_tokens: all of them leave no other texts to check "
            "against"
        )
    model = load_model()
    layers = layers or list(published_hyper("memit", model)["layers"])
    wanted = FLAGS.max_tokens
    wanted = TOKENS_PER_WIDTH * model.config.F if wanted is None else wanted

    # The second moments and the files they are written to, by one process at a time.
    out = Path(FLAGS.out)
    with own_target(out):
        result = collect_and_write(model, texts, layers, wanted, out)
    if FLAGS.json:
        print_json(result)
    else:
        show(result)


def collect_and_write(
    model: "Model", texts: list[str], layers: list[int], wanted: int, out: Path
) -> dict[str, Any]:
    """Collect second moments and write them; return what is printed.

    Args:
      model: whose keys.
      texts: the corpus.
      layers: whose MLP.
      wanted: how many tokens; 0: all.
      out: the file; --npz names a folder for the other form.
    """
    from jaxedit.edits.edit import EDITED_WEIGHT
    from jaxedit.stats.npz import write_npz
    from jaxedit.stats.spectra import spectrum
    from jaxedit.stats.value_norm import to_json

    stats = collect_with_progress(
        model, texts, layers, wanted, out.with_suffix(".part"), FLAGS.gradients
    )
    if FLAGS.value_norm:
        norms = {max(layers): measure_with_progress(model, max(layers))}
        stats = dataclasses.replace(stats, value_norms=norms)
    if is_first_process():
        stats.save(out)
    if FLAGS.npz and is_first_process():
        name = model.metadata.tensor_names[EDITED_WEIGHT][0].removesuffix(".weight").format(l="{}")
        n_texts = stats.made_from["n_texts"]
        write_npz(Path(FLAGS.npz), dict(stats.moments), stats.n_tokens, name, n_texts)

    # What is printed: spectra, and the comparison with a larger sample.
    result: dict[str, Any] = {
        "out": str(out),
        "n_tokens": stats.n_tokens,
        "layers": {str(layer): spectrum(cov_FF) for layer, cov_FF in stats.moments.items()},
    }
    if stats.value_norms:
        result["value_norms"] = to_json(stats.value_norms)
    if FLAGS.check:
        part = out.with_suffix(".check.part")
        n_tokens = CHECK_TIMES * wanted
        result["check"] = compare_with_larger_sample(model, texts, stats, n_tokens, part)
    return result


def compare_with_larger_sample(
    model: "Model", texts: list[str], stats: "Stats", n_tokens: int, part: Path
) -> dict[str, Any]:
    """Compare with a sample of texts that the first one did not read.

    Args:
      model: whose keys.
      texts: the corpus.
      stats: of the first sample.
      n_tokens: of the larger one.
      part: a file for its sums so far.

    Raises:
      ValueError: where these hold fewer tokens than the second moments are wide.
    """
    from jaxedit.stats.collect import shuffle_texts
    from jaxedit.stats.spectra import compare_stats

    n_read = stats.made_from["n_texts_read"]
    others = shuffle_texts(texts, FLAGS.seed)[n_read:]
    if not others:
        raise ValueError(
            f"--check: the first sample read all {n_read} texts of {FLAGS.corpus}; give fewer "
            "--max_tokens"
        )
    larger = collect_with_progress(model, others, list(stats.moments), n_tokens, part)
    return {"n_tokens": larger.n_tokens, "layers": compare_stats(stats, larger)}


def collect_with_progress(
    model: "Model",
    texts: list[str],
    layers: list[int],
    n_tokens: int,
    part: Path,
    gradients: bool = False,
) -> "Stats":
    """Collect second moments with a progress bar on standard error.

    Args:
      model: whose keys.
      texts: the corpus.
      layers: whose MLP.
      n_tokens: at most so many; 0: all.
      part: a file for the sums so far.
      gradients: whether those of output gradients are collected too.

    Raises:
      ValueError: where the corpus is too small for second moments of full rank.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from jaxedit.stats.collect import collect_stats

    # The sums, with a bar on standard error.
    text, count = TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} tokens")
    columns = text, BarColumn(), count, TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True, quiet=not is_first_process())) as bar:
        task = bar.add_task("second moments", total=None)
        stats = collect_stats(
            model,
            texts,
            layers,
            max_tokens=n_tokens or None,
            max_length=FLAGS.max_length,
            seed=FLAGS.seed,
            corpus=FLAGS.corpus,
            gradients=gradients,
            resume=part,
            on_tokens=lambda done, total: bar.update(task, completed=done, total=total),
        )

    # Fewer tokens than the width cannot give full rank.
    F = model.config.F
    if stats.n_tokens < F:
        raise ValueError(
            f"{FLAGS.corpus} gave {stats.n_tokens:,} tokens, fewer than the {F:,} that the second "
            f"moments are wide; give a larger --corpus ({TOKENS_PER_WIDTH * F:,} tokens are the "
            "default)"
        )
    if n_tokens and stats.n_tokens < n_tokens:
        logging.getLogger("jaxedit").warning(
            "%s holds %s tokens, fewer than the %s asked for; all were taken",
            FLAGS.corpus,
            f"{stats.n_tokens:,}",
            f"{n_tokens:,}",
        )
    return stats


def show(result: dict[str, Any]) -> None:
    """Print the result for people."""
    from jaxedit.reports.formatting import format_number

    tables = {f"{result['n_tokens']:,} tokens, {result['out']}": result["layers"]}
    if "value_norms" in result:
        tables["norms of values"] = result["value_norms"]
    if "check" in result:
        compared = result["check"]["layers"]
        tables[f"against {result['check']['n_tokens']:,} tokens of other texts"] = {
            layer: {name: value for name, value in numbers.items() if name != "tenth_ratios"}
            for layer, numbers in compared.items()
        }
        tables["ratio of the eigenvalues by tenths, the smallest first"] = {
            layer: {str(i): ratio for i, ratio in enumerate(numbers["tenth_ratios"], 1)}
            for layer, numbers in compared.items()
        }
    for title, rows in tables.items():
        names = list(next(iter(rows.values())))
        cells = [
            [str(layer), *map(format_number, numbers.values())] for layer, numbers in rows.items()
        ]
        show_table(["layer", *names], cells, title=title)
