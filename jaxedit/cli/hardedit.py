"""Make new hard cases: facts of which one edit makes the model at hand collapse.

    jaxedit hardedit --config.texts=ME-PPL_50.json --n_records=100
    jaxedit hardedit --config.model=gemma3-270m --set=editor.layer=1 --workdir=runs/gemma_hard
    jaxedit hardedit --base_url=http://localhost:8000/v1 --server_model=NAME --examples=hard.json

Candidates begin with a subject of one word. Without --base_url they are built-in facts whose
subject is one token of the model; with it a language model writes them, ten a call, with the key
that OPENAI_API_KEY holds. Each is verified by an edit of the unedited model (ROME, or what --config
and --set say), and those over --min_ratio times its perplexity are written to --out, a file for
--config.facts. The same command goes on: nothing is asked for or edited twice.
"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from jaxedit.cli._flags import (
    FLAGS,
    apply_set,
    config_flag,
    json_flag,
    path_flag,
    set_flag,
)
from jaxedit.cli._output import StepBar, print_json, show_table

if TYPE_CHECKING:
    from jaxedit.hard_cases.asked_candidates import Server
    from jaxedit.hard_cases.search import SearchResult

SHOWN = 20  # hard cases in the table


def define_flags() -> None:
    """Define the flags of this command."""
    config_flag("single_edits")
    set_flag()
    flags.DEFINE_integer("n_records", 100, "end with so many hard cases", lower_bound=1)
    flags.DEFINE_float("min_ratio", 3.0, "a hard case is over so many times the perplexity")
    flags.DEFINE_integer("per_subject", 1, "candidates about a subject, at most", lower_bound=1)
    flags.DEFINE_integer(
        "round_size", 32, "edits between two looks at how many were found", lower_bound=1
    )
    flags.DEFINE_string("base_url", None, "an OpenAI-compatible server that writes candidates")
    flags.DEFINE_string("server_model", None, "the model's name there")
    flags.DEFINE_integer("max_calls", 200, "calls of the server, at most", lower_bound=1)
    path_flag("examples", None, "facts that the server is shown; absent: four of our own")
    path_flag("workdir", "runs/hardedit", "where candidates and studies go")
    path_flag("out", "hardedit.json", "the hard cases, as facts")
    json_flag()


def main() -> None:
    """Search, write and show."""
    from jaxedit.distributed import own_workdir
    from jaxedit.hard_cases.search import SearchPlan, search_hard_cases, write_hard_cases
    from jaxedit.study.mirror import local_workdir

    if not 1 < FLAGS.min_ratio < math.inf:
        raise ValueError(
            f"--min_ratio={FLAGS.min_ratio}: expected a number over 1, of times the perplexity"
        )
    config = FLAGS.config
    apply_set(config)
    plan = SearchPlan(
        FLAGS.n_records, FLAGS.min_ratio, FLAGS.per_subject, FLAGS.round_size, _server()
    )
    with (
        local_workdir(FLAGS.workdir) as folder,
        own_workdir(folder),
        StepBar(single=True) as bar,
    ):
        result = search_hard_cases(config, folder, plan, bar.show_step, _say_asked)
    if hard := result.hard(FLAGS.min_ratio):
        write_hard_cases(Path(FLAGS.out), hard)
    _show(result)


def _server() -> "Server | None":
    """Return the server that the flags name.

    Raises:
      ValueError: where they do not go together.
    """
    from jaxedit.datasets import read_requests
    from jaxedit.hard_cases.asked_candidates import EXAMPLES, Server
    from jaxedit.hard_cases.builtin_candidates import Candidate

    if bool(FLAGS.base_url) != bool(FLAGS.server_model):
        raise ValueError(
            "--base_url and --server_model go together: a server's address, e.g. "
            "http://localhost:8000/v1, and a model's name there"
        )
    if not FLAGS.base_url:
        if FLAGS.examples:
            raise ValueError("--examples are shown to a server: give its --base_url")
        return None
    examples = EXAMPLES
    if FLAGS.examples:
        requests = read_requests(FLAGS.examples).requests
        examples = [
            Candidate(each.prompt_text, each.subject, each.target_new, each.target_true)
            for each in requests
            if each.target_true is not None
        ]
        if not examples:
            raise ValueError(f"--examples={FLAGS.examples}: no fact there has a true answer")
    return Server(FLAGS.base_url, FLAGS.server_model, FLAGS.max_calls, examples)


def _say_asked(asked, n_candidates: int) -> None:
    """Say on standard error what was asked so far."""
    print(
        f"asked {asked.n_calls} times: {n_candidates} candidates, {asked.prompt_tokens:,} + "
        f"{asked.completion_tokens:,} tokens",
        file=sys.stderr,
    )


def _show(result: "SearchResult") -> None:
    """Print what was found."""
    from jaxedit.analyses.damage_prediction import COLLAPSE_PPL

    hard, asked = result.hard(FLAGS.min_ratio), result.state.asked
    n_not_made = sum(each.perplexity is None for each in result.verified)
    n_collapsed = sum(each.has_collapsed for each in result.verified)
    if FLAGS.json:
        print_json(
            {
                "out": FLAGS.out if hard else None,
                "n_candidates": len(result.state.candidates),
                "n_verified": len(result.verified),
                "n_not_made": n_not_made,
                "n_hard": len(hard),
                "min_ratio": FLAGS.min_ratio,
                "n_over_1000": n_collapsed,
                "unedited_perplexity": result.unedited,
                "asked": asked._asdict(),
                "hard": [
                    {**each.fact, "perplexity": each.perplexity, "ratio": each.ratio}
                    for each in hard
                ],
            }
        )
        return

    # The worst of them, then the counts.
    worst = sorted(hard, key=lambda each: -each.ratio)[:SHOWN]
    rows = [
        [
            f"{each.request_text} → {each.fact['target_new']}",
            f"{each.perplexity:,.6g}",
            f"{each.ratio:,.4g}",
        ]
        for each in worst
    ]
    if rows:
        show_table(["edit", "perplexity", "ratio"], rows)
    for reason, n_records in sorted(asked.rejected.items(), key=lambda item: -item[1]):
        print(f"rejected: {n_records} with {reason}")
    if asked.n_calls:
        unknown = f", not counted in {asked.n_uncounted} calls" if asked.n_uncounted else ""
        print(
            f"The server was asked {asked.n_calls} times: {asked.prompt_tokens:,} tokens of "
            f"prompts, {asked.completion_tokens:,} of completions{unknown}."
        )
    print(
        f"{len(hard)} of {len(result.verified)} edits took the perplexity over {FLAGS.min_ratio:g} "
        f"times the unedited one, {n_collapsed} over {COLLAPSE_PPL:,}; {n_not_made} could not be "
        f"made. {len(result.state.candidates) - len(result.verified)} candidates were not tried."
    )
    if len(hard) < FLAGS.n_records:
        print(
            f"That is fewer than --n_records={FLAGS.n_records}: a higher --per_subject, more "
            "--max_calls or a server (--base_url) give more candidates."
        )
    if hard:
        print(f"Facts: {FLAGS.out}")
