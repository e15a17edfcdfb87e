"""Hard cases, searched for: candidates are verified by a real edit of the model, round by round.

What is on the disk (`jaxedit.hard_cases.search_state`, and a study of single edits a round) is not
asked for or edited again: a search goes on with the same command. A hard case is one after whose
edit the perplexity is over a limit times the unedited model's.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxedit.analyses.damage_prediction import has_collapsed
from jaxedit.files import write_atomic
from jaxedit.hard_cases.asked_candidates import MOST_BARREN, Asked, Server, ask_candidates
from jaxedit.hard_cases.builtin_candidates import built_in_candidates
from jaxedit.hard_cases.search_state import (
    SearchState,
    begin_round,
    facts_of_round,
    open_state,
    round_folder,
    write_state,
)
from jaxedit.study import run_file
from jaxedit.study.config import plain_config
from jaxedit.study.journal import Journal, read_journal
from jaxedit.study.loop import OnStep, run_study
from jaxedit.study.replay import load_start
from jaxedit.study.validation import with_local_paths

SAME = ("fingerprints", "texts_sha256", "stats", "context_templates")  # of all rounds' run.json


class SearchPlan(NamedTuple):
    """How long is searched, and for what.

    Attributes:
      n_records: hard cases, then the search ends.
      min_ratio: a hard case is over so many times the unedited perplexity.
      per_subject: how many candidates there may be about a subject.
      round_size: edits between two looks at how many were found.
      server: that writes candidates; None: the built-in ones are taken.
    """

    n_records: int
    min_ratio: float
    per_subject: int
    round_size: int
    server: Server | None = None


class TriedCandidate(NamedTuple):
    """A candidate whose edit was tried.

    Attributes:
      fact: in this project's own form.
      perplexity: after its edit, the mean over texts; None: it could not be made.
      ratio: that over the unedited model's; infinite where it is not finite.
      has_collapsed: whether it is over the papers' limit.
    """

    fact: dict[str, Any]
    perplexity: float | None
    ratio: float
    has_collapsed: bool

    @property
    def request_text(self) -> str:
        """The prompt with its subject, as a model is asked."""
        return self.fact["prompt"].replace("{}", self.fact["subject"])


class SearchResult(NamedTuple):
    """What a search found.

    Attributes:
      verified: in the order of the edits.
      unedited: the unedited model's perplexity; None: no round was made.
      state: the candidates, and what asking has cost.
    """

    verified: list[TriedCandidate]
    unedited: float | None
    state: SearchState

    def hard(self, min_ratio: float) -> list[TriedCandidate]:
        """Return the hard cases."""
        return [each for each in self.verified if each.ratio > min_ratio]


def search_hard_cases(
    config: ConfigDict,
    folder: Path,
    plan: SearchPlan,
    on_step: OnStep = lambda record, total: None,
    on_asked: Callable[[Asked, int], None] = lambda asked, n_candidates: None,
) -> SearchResult:
    """Search for hard cases until there are enough, or no candidates are left.

    Args:
      config: of the studies of single edits; its facts are those of the rounds.
      folder: where everything is kept, and may be already.
      plan: how long, and for what.
      on_step: as `jaxedit.study.loop.run_study`, of each round.
      on_asked: called after each call of a server, with the number of candidates.

    Raises:
      ValueError: where the folder is another search's, the server cannot be asked, or the studies
        cannot be run.
    """
    config = _single_edits(config)
    folder.mkdir(parents=True, exist_ok=True)
    state = open_state(folder, config)
    verified: list[TriedCandidate] = []
    runs: list[Journal] = []
    while True:
        done = len(runs)
        n_hard = sum(each.ratio > plan.min_ratio for each in verified)
        if done == len(state.rounds):
            if n_hard >= plan.n_records:
                break
            state = _more_candidates(config, folder, plan, state, on_asked)
            state = begin_round(folder, state, plan.round_size)
            if done == len(state.rounds):
                break  # no candidates are left
        runs.append(_run_round(config, folder, done + 1, state.rounds[done], on_step))
        _check_same(runs[0], runs[-1])
        verified += _read_round(runs[-1], facts_of_round(state, done))
    unedited = _mean(runs[0].steps[0].record.perplexity) if runs else None
    return SearchResult(verified, unedited, state)


def write_hard_cases(path: Path, chosen: list[TriedCandidate]) -> None:
    """Write hard cases as a file of facts in this project's own form, each with what it did."""
    records = []
    for each in chosen:
        value = "not finite" if each.perplexity is None else f"{each.perplexity:.6g}"
        note = f"perplexity {value}, {each.ratio:.4g} times the unedited model's"
        records.append({**each.fact, "note": note})
    write_atomic(path, (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode())


def _single_edits(config: ConfigDict) -> ConfigDict:
    """Return a configuration whose study tries every fact by itself, to its end.

    Raises:
      ValueError: where it names facts.
    """
    if config.facts != "builtin":
        raise ValueError(
            f"facts={config.facts}: this command makes its facts itself; `jaxedit screen` and a "
            "study of single edits find the hard ones of given facts"
        )
    config = config.copy_and_resolve_references()
    config.update(mode="single", facts_per_edit=1, n_facts=0, shard="", screening="")
    config.update(guard=dict(action="keep"), eval=dict(perplexity_every=1))
    return config


def _more_candidates(
    config: ConfigDict,
    folder: Path,
    plan: SearchPlan,
    state: SearchState,
    on_asked: Callable[[Asked, int], None],
) -> SearchState:
    """Add candidates until a round is full, or there are no more; each reply is kept at once."""
    missing = sum(state.rounds) + plan.round_size
    if plan.server is None:
        if len(state.candidates) >= missing:
            return state
        values = with_local_paths(plain_config(config))
        tokenizer = load_start(values, mesh=values["mesh"]).tokenizer
        built_in = built_in_candidates(tokenizer, plan.per_subject)
        # Of each subject as many as there may be; what a server wrote before counts too.
        prompts = {each.prompt for each in state.candidates}
        times = Counter(each.subject.casefold() for each in state.candidates)
        new = []
        for each in built_in:
            subject = each.subject.casefold()
            if each.prompt not in prompts and times[subject] < plan.per_subject:
                times[subject] += 1
                new.append(each)
        if not built_in and not state.candidates:
            raise ValueError(
                f"no built-in fact has a subject that is one token of {config.model} at the start "
                "of a text: give --base_url, a server that writes candidates"
            )
        return write_state(folder, state._replace(candidates=state.candidates + new))
    n_barren = 0
    while (
        len(state.candidates) < missing
        and state.asked.n_calls < plan.server.max_calls
        and n_barren < MOST_BARREN
    ):
        found, asked = ask_candidates(plan.server, state.candidates, state.asked, plan.per_subject)
        state = state._replace(candidates=state.candidates + found, asked=asked)
        write_state(folder, state)
        on_asked(asked, len(state.candidates))
        n_barren = 0 if found else n_barren + 1
    return state


def _run_round(
    config: ConfigDict, folder: Path, number: int, size: int, on_step: OnStep
) -> Journal:
    """Make the edits of a round that were not made yet; return its journal."""
    workdir = round_folder(folder, number)
    if (workdir / run_file.FILE).is_file():
        journal = read_journal(workdir)
        if len(journal.steps) == 1 + size:
            return journal
    config = config.copy_and_resolve_references()
    config.facts = str(workdir.with_suffix(".json"))
    return read_journal(run_study(config, workdir, on_step))


def _check_same(first: Journal, other: Journal) -> None:
    """Raise a ValueError where two rounds measured other models, or on other texts."""
    for key in SAME:
        if first.run.get(key) != other.run.get(key):
            raise ValueError(
                f"{other.folder} has another {key} than {first.folder}: its model, texts or second "
                "moments were changed in between; give another --workdir"
            )


def _read_round(journal: Journal, facts: list[dict[str, Any]]) -> list[TriedCandidate]:
    """Return what the edits of a round did."""
    unedited = _mean(journal.steps[0].record.perplexity) or math.nan
    found = []
    for fact, step in zip(facts, journal.steps[1:], strict=True):
        record = step.record
        mean = _mean(record.perplexity) if record.is_made else None
        if mean is None:
            found.append(TriedCandidate(fact, None, math.nan, False))
            continue
        mean = mean if math.isfinite(mean) else math.inf
        found.append(TriedCandidate(fact, mean, mean / unedited, has_collapsed(mean, unedited)))
    return found


def _mean(perplexity: Mapping[str, Any] | None) -> float | None:
    return None if perplexity is None else float(perplexity["mean"])
