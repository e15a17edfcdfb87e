"""The arguments of EasyEdit's `BaseEditor.edit`, as a file holds them: an object of lists.

    {"prompts": [...], "subject": [...], "target_new": [...], "ground_truth": [...],
     "rephrase_prompts": [...], "locality_prompts": [...], "locality_ground_truth": [...],
     "locality_inputs": {"neighborhood": {"prompt": [...], "ground_truth": [...]}},
     "portability_inputs": {"one_hop": {"prompt": [...], "ground_truth": [...]}}}

One entry of each list is one edit. They become records of the form `knowedit`.
"""

from typing import Any

from jaxedit.datasets._fields import is_missing
from jaxedit.files import shorten_json

NAMES = {"prompts": "prompt", "subject": "subject", "target_new": "target_new"}
OPTIONAL = {"ground_truth": "ground_truth", "rephrase_prompts": "rephrase_prompt"}
PROBES = {"locality_inputs": "locality", "portability_inputs": "portability"}
NEIGHBOURS = ("locality_prompts", "locality_ground_truth")  # of `batch_edit`: one unnamed group


def is_call(value: Any) -> bool:
    """Return whether a file's content is EasyEdit's arguments."""
    return isinstance(value, dict) and "prompts" in value


def records_of_call(source: str, call: dict[str, Any]) -> list[dict[str, Any]]:
    """Make a record of each edit.

    Args:
      source: the file, for messages.
      call: the arguments by their names.

    Raises:
      ValueError: on an argument that is missing, unknown, or no list as long as the prompts.
    """
    known = [*NAMES, *OPTIONAL, *PROBES, *NEIGHBOURS]
    unknown, lacking = sorted(set(call) - set(known)), [name for name in NAMES if name not in call]
    if unknown or lacking:
        problem = f"the unknown argument {unknown[0]!r}" if unknown else f"no {lacking[0]!r}"
        raise ValueError(f"{source} has {problem}; the arguments are {', '.join(known)}")
    if isinstance(call["prompts"], str):  # one edit, written without lists
        call = {name: [value] if isinstance(value, str) else value for name, value in call.items()}
    call = _with_neighbours(source, call)
    n_edits = len(call["prompts"]) if isinstance(call["prompts"], list) else 0
    records: list[dict[str, Any]] = [{"portability": {}, "locality": {}} for _ in range(n_edits)]
    for argument, field in (NAMES | OPTIONAL).items():
        if is_missing(call.get(argument)):
            continue
        values = _list(source, argument, call[argument], n_edits)
        for record, value in zip(records, values, strict=True):
            if not is_missing(value):
                record[field] = value
    for argument, field in PROBES.items():
        for name, group in _groups(source, argument, call.get(argument)).items():
            what = f"{argument}.{name}"
            prompts = _list(source, f"{what}.prompt", group["prompt"], n_edits)
            answers = _list(source, f"{what}.ground_truth", group["ground_truth"], n_edits)
            for record, prompt, answer in zip(records, prompts, answers, strict=True):
                record[field][name] = _probes(source, what, prompt, answer)
    return records


def _with_neighbours(source: str, call: dict[str, Any]) -> dict[str, Any]:
    """Return arguments whose neighbours that have no group are one of `locality_inputs`."""
    prompts, answers = (call.get(name) for name in NEIGHBOURS)
    if is_missing(prompts) and is_missing(answers):
        return call
    if is_missing(prompts) or is_missing(answers):
        raise ValueError(f"{source}: {' and '.join(NEIGHBOURS)} go together, prompts and answers")
    groups = call.get("locality_inputs") or {}
    group = {"prompt": prompts, "ground_truth": answers}
    return {**call, "locality_inputs": {**groups, "locality_prompts": group}}


def _list(source: str, what: str, value: Any, n_edits: int) -> list[Any]:
    """Return an argument's list, one entry an edit."""
    if not isinstance(value, list) or len(value) != n_edits:
        raise ValueError(
            f"{source}: {what} must be a list of {n_edits} entries, as many as prompts; got "
            f"{shorten_json(value)}"
        )
    return value


def _groups(source: str, argument: str, groups: Any) -> dict[str, dict[str, Any]]:
    """Return an argument's groups of probes: name -> {"prompt": [...], "ground_truth": [...]}."""
    groups = groups or {}
    keys = {"prompt", "ground_truth"}
    is_known = isinstance(groups, dict) and all(
        isinstance(group, dict) and keys <= set(group) for group in groups.values()
    )
    if not is_known:
        raise ValueError(
            f"{source}: {argument} must be an object of groups, each with a prompt and a "
            f"ground_truth; got {shorten_json(groups)}"
        )
    return groups


def _probes(source: str, what: str, prompt: Any, answer: Any) -> list[dict[str, Any]]:
    """Return one edit's probes of a group, of which there may be one, several or none."""
    prompts = prompt if isinstance(prompt, list) else [prompt]
    answers = answer if isinstance(prompt, list) else [answer]
    if not isinstance(answers, list) or len(prompts) != len(answers):
        raise ValueError(
            f"{source}: {what} has the prompts {shorten_json(prompts)} with the answers "
            f"{shorten_json(answers)}; expected as many of both"
        )
    pairs = zip(prompts, answers, strict=True)
    return [
        {"prompt": prompt, "ground_truth": answer}
        for prompt, answer in pairs
        if not is_missing(prompt) and not is_missing(answer)
    ]
