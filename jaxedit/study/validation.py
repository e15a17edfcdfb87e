"""Checks of a study's configuration, the division of its facts, and digests of what it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxedit.editors import Editor
from jaxedit.edits.request import Request, with_leading_space
from jaxedit.files import expand_home, shorten_json
from jaxedit.metrics.generated import CONTEXTS
from jaxedit.models.loss_probe import N_DRAWS
from jaxedit.rounding import read_whole_number
from jaxedit.study.config import AUTO, GROUPS, KINDS, default_config, editor_from, with_tuples

MODES = ("sequential", "single")
PATH_KEYS = (
    "facts",
    "texts",
    "stats",
    "harm_texts",
    "start.run",
    "start.edit",
    "eval.reference_texts",
    "editor.target_cache",
    "editor.harm_texts",
    "editor.network",
)


def check_types(values: Mapping[str, Any]) -> None:
    """Check that every value of a configuration is of the kind that its key has.

    Raises:
      ValueError: where one is not; the message names the key.
    """
    known: Any = default_config()
    groups = [("", known)] + [(f"{name}.", known[name]) for name in GROUPS]
    for prefix, group in groups:
        given = values[prefix[:-1]] if prefix else values
        for key in group:
            kind, value = group.get_type(key), given[key]
            if kind is ConfigDict or (value is None and group[key] is None):
                continue
            limit = f"{prefix}{key}" == "guard.max_relative_perturbation" and value is None
            accepted = {int: int, float: (int, float), tuple: (tuple, list)}.get(kind, kind)
            is_of_kind = isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
            if not limit and not is_of_kind:
                expected = KINDS.get(kind, "a text")
                raise ValueError(f"{prefix}{key}={value!r}: expected {expected}")


def with_local_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose paths have the user's home for a leading ~."""

    def expanded(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: expanded(f"{name}.{key}", inner) for key, inner in value.items()}
        if name == "alternatives":
            return [expanded("editor", each) for each in value]
        return expand_home(value) if name in PATH_KEYS and isinstance(value, str) else value

    return {key: expanded(key, value) for key, value in values.items()}


def complete_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration, and return it with the draws of labels that "auto" predicts by.

    Raises:
      ValueError: as `check_config`.
    """
    check_config(values)
    evaluation = values["eval"]
    if evaluation["perplexity_every"] != AUTO or evaluation["prediction_draws"]:
        return dict(values)
    return {**values, "eval": {**evaluation, "prediction_draws": N_DRAWS}}


def check_config(values: Mapping[str, Any]) -> None:
    """Check a configuration's numbers and names.

    Raises:
      ValueError: on a value that no study can have; the message names the key.
    """
    check_types(values)
    check_alternatives(values)
    check_start(**values["start"])
    # Numbers.
    evaluation = values["eval"]
    if values["mode"] not in MODES:
        raise ValueError(f"mode={values['mode']!r}: expected one of {', '.join(MODES)}")
    if values["n_facts"] < 0:
        raise ValueError(f"n_facts={values['n_facts']}: expected a number of facts, or 0 for all")
    for name in ("facts_per_edit", "journal_dense_every", "single_batch_size"):
        if values[name] < 1:
            raise ValueError(f"{name}={values[name]}: expected a positive number")
    check_perplexity_every(evaluation)
    for name in ("kl_every", "fluency_every", "retention_every", "generated_every"):
        if evaluation[name] < 0:
            raise ValueError(
                f"eval.{name}={evaluation[name]}: expected a number of edits, or 0 for never"
            )
    if evaluation["prediction_draws"] < 0:
        raise ValueError(
            f"eval.prediction_draws={evaluation['prediction_draws']}: expected a number of draws, "
            "or 0 for no prediction"
        )
    prompts = evaluation["prompts"]
    if isinstance(prompts, str) or not all(isinstance(text, str) and text for text in prompts):
        raise ValueError(
            f"eval.prompts={prompts!r}: expected a list of texts, each with something in it"
        )

    context = evaluation["generated_context"]
    if context not in CONTEXTS:
        raise ValueError(
            f"eval.generated_context={context!r}: expected one of {', '.join(CONTEXTS)}"
        )

    # What does not go together.
    is_undoing = values["mode"] != "single" and values["guard"]["action"] != "keep"
    if evaluation["perplexity_every"] == AUTO and is_undoing and values["journal_dense_every"] > 1:
        raise ValueError(
            f"journal_dense_every={values['journal_dense_every']}: with "
            f"eval.perplexity_every={AUTO!r} the guard may undo earlier edits, each of which must "
            "be journalled; set journal_dense_every=1 or guard.action=keep"
        )
    if bool(evaluation["judge"]) != bool(evaluation["judge_model"]):
        raise ValueError(
            "eval.judge and eval.judge_model go together: the server's address, e.g. "
            "http://localhost:8000/v1, and a model's name there"
        )
    stops = values["guard"]["action"] == "stop"
    if values["shard"] and (values["mode"] != "single" or stops):
        raise ValueError(
            f"shard={values['shard']!r}: only single edits, none of which ends the study, can be "
            "made in shards"
        )


def check_start(run: str, edit: str, run_steps: Sequence[int], after_step: int | None) -> None:
    """Raise a ValueError where what names the edits that a study begins with does not go together.

    That it is one of run and edit is checked where they are read.
    """
    n_given = bool(run_steps) + (after_step is not None)
    if n_given > 1 or (n_given and not run):
        raise ValueError(
            f"start.run_steps={list(run_steps)} and start.after_step={after_step}: expected one of "
            "them, with the study in start.run"
        )


def check_alternatives(values: Mapping[str, Any]) -> None:
    """Check that a configuration's alternatives are entries of methods, and have what they need.

    Raises:
      ValueError: on other entries, on alternatives without texts whose loss is not to rise, or the
        other way round, and together with a screening.
    """
    alternatives, harm_texts = values["alternatives"], values["harm_texts"]
    if not all(isinstance(each, Mapping) and each.get("method") for each in alternatives):
        raise ValueError(
            f"alternatives={shorten_json(alternatives)}: expected a list, each entry with its "
            'method, e.g. [{"method": "rome", "layer": 3}, {"method": "memit"}]'
        )
    if bool(alternatives) != bool(harm_texts):
        raise ValueError(
            "alternatives and harm_texts go together: other ways to write each fact than the "
            "editor's, and texts, others than are evaluated, whose loss is to rise least (those of "
            "harm_projection are editor.harm_texts)"
        )
    if alternatives and values["screening"]:
        raise ValueError(
            f"screening={values['screening']!r} and alternatives exclude each other: what is "
            "predicted of a fact before its edit is known of one method alone"
        )


def check_perplexity_every(evaluation: Mapping[str, Any]) -> None:
    """Check how often the perplexity is measured, and that predictions serve where they decide.

    Raises:
      ValueError: where it is neither a positive number of edits nor "auto", or where the draws of
        "auto" are too few for a standard error.
    """
    every = evaluation["perplexity_every"]
    if every != AUTO and not (type(every) is int and every >= 1):
        raise ValueError(
            f"eval.perplexity_every={every!r}: expected a positive number of edits, or {AUTO!r}"
        )
    draws = evaluation["prediction_draws"]
    if every == AUTO and draws == 1:
        raise ValueError(
            f"eval.prediction_draws={draws}: eval.perplexity_every={AUTO!r} needs two draws or "
            "more, which tell how sure a prediction is"
        )


def check_editor(values: Mapping[str, Any], editor: Editor) -> None:
    """Check that a configuration's edits can be made by its method, and journalled as it asks for.

    So can those of its alternatives, whose names and numbers are checked here.

    Raises:
      ValueError: where a method writes fewer facts at a time, where single or low-rank edits are
        journalled every k edits, and where the methods ask the model in different ways.
    """
    entries = [default_config(**with_tuples(each)).to_dict() for each in values["alternatives"]]
    editors = [editor, *(editor_from(each["editor"]) for each in entries)]
    n_facts = values["facts_per_edit"]
    for each in editors:
        if each.max_requests is not None and n_facts > each.max_requests:
            raise ValueError(
                f"facts_per_edit={n_facts}: {each.name} writes one fact in an edit; give 1, or "
                "editor.method=memit, which writes many"
            )
    every, is_dense = values["journal_dense_every"], any(each.dense for each in editors)
    if every > 1 and (values["mode"] == "single" or not is_dense):
        raise ValueError(
            f"journal_dense_every={every} is for sequences of edits that change whole matrices; "
            f"expected 1 for {editor.name} in mode {values['mode']}"
        )
    # The model that has all their edits is asked in one way.
    for name in ("anchor", "leading_space"):
        found = {getattr(each.hyper, name, None) for each in editors}
        if len(found) > 1:
            raise ValueError(
                f"alternatives: {name} is {' and '.join(sorted(map(str, found)))}; expected the "
                "same of all and of editor"
            )


def facts_of_edits(asked: list[Request], values: Mapping[str, Any]) -> list[list[Request]]:
    """Divide the facts into those of each edit; those that do not say it get the editor's space.

    Raises:
      ValueError: where n_facts would cut the last edit short.
    """
    requests, size = asked[: values["n_facts"] or None], values["facts_per_edit"]
    if len(requests) % size and len(requests) < len(asked):
        raise ValueError(
            f"n_facts={values['n_facts']} is not a multiple of facts_per_edit={size}, so the last "
            "edit would be cut short"
        )
    requests = with_leading_space(requests, values["editor"].get("leading_space"))
    return [requests[i : i + size] for i in range(0, len(requests), size)]


def shard_steps(n_steps: int, batch_size: int, shard: str) -> tuple[int, ...]:
    """Assign batches of steps to shards round-robin; return the steps of one shard.

    A batch is the same in whichever shard it is made.

    Args:
      n_steps: of the whole study.
      batch_size: steps of a batch.
      shard: "i/n", or "" for all steps.

    Raises:
      ValueError: where the shard is not i/n with 1 <= i <= n.
    """
    if not shard:
        return tuple(range(1, n_steps + 1))
    which, _, n_shards = shard.partition("/")
    i, n = read_whole_number(which), read_whole_number(n_shards)
    if i is None or n is None or not 1 <= i <= n:
        raise ValueError(
            f'shard={shard[:80]!r}: expected i/n with i from 1 to n, e.g. "2/8" for the second of '
            "eight shards"
        )
    return tuple(step for step in range(1, n_steps + 1) if (step - 1) // batch_size % n == i - 1)
