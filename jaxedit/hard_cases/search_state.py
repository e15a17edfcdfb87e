"""What a search for hard cases keeps on the disk besides its studies, to go on from.

WORKDIR/search.json        the candidates, how many each round has, what asking has cost
WORKDIR/round_001.json     the facts of a round
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxedit.files import flatten_keys, read_json, shorten_json, to_json, write_atomic
from jaxedit.hard_cases.asked_candidates import Asked
from jaxedit.hard_cases.builtin_candidates import Candidate, read_candidates, to_fact
from jaxedit.study.config import plain_config

FILE = "search.json"


class SearchState(NamedTuple):
    """What a search has on the disk besides its studies.

    Attributes:
      config: of its studies, as plain values.
      candidates: in the order of their verification.
      rounds: how many of them each round has.
      asked: what asking a server has cost.
    """

    config: dict[str, Any]
    candidates: list[Candidate]
    rounds: list[int]
    asked: Asked


def open_state(folder: Path, config: ConfigDict) -> SearchState:
    """Read what a folder holds of the search, or begin one.

    Raises:
      ValueError: where the folder holds another search, or something else.
    """
    path, values = folder / FILE, to_json(plain_config(config))
    values = {key: value for key, value in values.items() if key not in ("facts", "mesh")}
    if not path.is_file():
        others = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
        if others:
            raise ValueError(
                f"{folder} holds {others[0]} and is no search's work directory; give another "
                "--workdir"
            )
        return SearchState(values, [], [], Asked())
    state = _read_state(path)
    before, now = flatten_keys(state.config), flatten_keys(values)
    differing = sorted(key for key in before.keys() & now if before[key] != now[key])
    if differing:
        key = differing[0]
        raise ValueError(
            f"{folder} is a search with {key}={shorten_json(before[key])}, not "
            f"{shorten_json(now[key])}: its edits would not be comparable; give another "
            "--workdir"
        )
    return state._replace(config=values)


def _read_state(path: Path) -> SearchState:
    """Read a search's state.

    Raises:
      ValueError: where the file is damaged.
    """
    found = read_json(path)
    try:
        candidates, asked = read_candidates(found["candidates"]), Asked(**found["asked"])
        return SearchState(dict(found["config"]), candidates, list(found["rounds"]), asked)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} lacks what a search keeps there ({error}): restore it from a copy"
        ) from error


def write_state(folder: Path, state: SearchState) -> SearchState:
    """Write a search's state, whole or not at all; return it."""
    candidates = [each._asdict() for each in state.candidates]
    content = {**state._asdict(), "candidates": candidates, "asked": state.asked._asdict()}
    write_atomic(folder / FILE, json.dumps(to_json(content), indent=1, ensure_ascii=False))
    return state


def begin_round(folder: Path, state: SearchState, size: int) -> SearchState:
    """Make a round of the candidates that wait, where there are any; at most so many."""
    n_waiting = len(state.candidates) - sum(state.rounds)
    if not n_waiting:
        return state
    state = state._replace(rounds=[*state.rounds, min(n_waiting, size)])
    number = len(state.rounds)
    facts = json.dumps(facts_of_round(state, number - 1), indent=1, ensure_ascii=False)
    write_atomic(round_folder(folder, number).with_suffix(".json"), facts)  # before it is named
    return write_state(folder, state)


def round_folder(folder: Path, number: int) -> Path:
    """Return the folder of a round's study; the file of its facts has the same name."""
    return folder / f"round_{number:03d}"


def facts_of_round(state: SearchState, i: int) -> list[dict[str, Any]]:
    """Return the facts of a round, counted from 0, in this project's own form."""
    first = sum(state.rounds[:i])
    chosen = state.candidates[first : first + state.rounds[i]]
    return [to_fact(each, number) for number, each in enumerate(chosen, first + 1)]
