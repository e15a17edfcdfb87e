"""Several ways to write each fact of a study, of which the one that harms least is kept.

Layers, clamp factors, fact tokens or methods write the same fact in different places. Each of these
alternatives makes its edit of a step on the model as it is; by how much all kept edits together
with it change the mean loss of some texts is predicted (`jaxedit.edits.predicted_change`), without
evaluating any edited model on them. Of the edits after which the model says most of the step's
facts, the one with the smallest predicted change is the step's.

Scores of changes add up, so those of the kept edits are one array of the editor's state. Each
alternative has a state of its own, which learns from the edits that it made itself.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxedit.editors import Editor
from jaxedit.edits.apply import apply
from jaxedit.edits.edit import Edit, places_of
from jaxedit.edits.predicted_change import change_of_scores, loss_scores
from jaxedit.edits.request import Request
from jaxedit.files import shorten_json, to_json
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.models.loss_probe import LossProbe
from jaxedit.models.model import Model
from jaxedit.solving.harm_texts import read_parts
from jaxedit.stats.second_moments import Stats
from jaxedit.study.config import editor_from, with_tuples
from jaxedit.study.edited import config_for

HARM_TOKENS = 4000  # of the texts that are read, spread evenly over them
MEMORY = "alternatives/"  # begins the names in an edit's memory that belong to the choice


class AlternativesState(NamedTuple):
    """What is known after the kept edits.

    Attributes:
      states: of each alternative's editor.
      templates: context templates of each; None where a method has none.
      probe: of the texts whose loss is not to rise, at all places that are changed.
      scores: of the kept edits (`loss_scores`), [1 + n_draws, texts].
    """

    states: tuple[Any, ...]
    templates: tuple[Any, ...]
    probe: LossProbe
    scores: np.ndarray


class Attempt(NamedTuple):
    """The edit that an alternative makes of a step.

    Attributes:
      index: the alternative's; 0 is the study's `editor`.
      edit: unapplied.
      state: of its editor after it.
      info: the editor's numbers.
      accuracy: the share of the facts that the model with it says on their bare prompts.
      scores: of the edit alone.
      predicted_nats: the predicted change of the texts' mean loss by all kept edits and this one.
    """

    index: int
    edit: Edit
    state: Any
    info: dict[str, float]
    accuracy: float
    scores: np.ndarray
    predicted_nats: float


def alternative_config(model: Model, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole `editor` entry of an alternative.

    Args:
      model: to be edited.
      given: "method" and hyper-parameters; the others are those published for the method and the
        model, or the method's defaults.

    Raises:
      ValueError: on an unknown method or hyper-parameter, or where no layer is known.
    """
    return config_for(model, **with_tuples(given)).to_dict()["editor"]


def whole_entries(
    model: Model,
    editor: Mapping[str, Any],
    alternatives: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the whole entries of alternatives.

    Args:
      model: to be edited.
      editor: the configuration's entry, whole.
      alternatives: as they were given.
      saved: those that the study was begun with, if it was: what is not given now is as it was
        then, context templates that were sampled too.

    Raises:
      ValueError: as `alternative_config`, and where two are the same.
    """
    entries = []
    for index, given in enumerate(alternatives):
        then = saved[index] if index < len(saved) else {}
        is_same = all(name in then and then[name] == to_json(given[name]) for name in given)
        entries.append(with_tuples(then) if is_same else alternative_config(model, given))
    known: list[Any] = []
    for entry in map(to_json, (editor, *entries)):
        if entry in known:
            raise ValueError(
                f"alternatives: {shorten_json(entry)} is there twice, as editor or an alternative; "
                "expected each once, at layers of its own or with other hyper-parameters"
            )
        known.append(entry)
    return entries


def with_used_templates(entries: Sequence[dict[str, Any]], state: Any) -> list[dict[str, Any]]:
    """Return whole entries of alternatives with the context templates that they are used with.

    Args:
      entries: without those that were sampled.
      state: of the editor that chooses among them.
    """
    if not entries:
        return []
    return [
        entry | ({"context_templates": templates} if templates else {})
        for entry, templates in zip(entries, state.templates[1:], strict=True)
    ]


def harm_text_sources(values: Mapping[str, Any]) -> list[str]:
    """List the texts whose loss is not to rise, as a configuration names them."""
    entries = [values["editor"], *values["alternatives"]]
    projected = {each.get("harm_texts", "") for each in entries if each.get("harm_projection")}
    return sorted({*projected, values["harm_texts"]} - {""})


def share_said(model: Model, edit: Edit, requests: list[Request]) -> float:
    """Return the share of the facts that a model says on their bare prompts with an edit."""
    nothing_else = dict(paraphrases=(), neighbours=(), portability=(), generation_prompts=())
    prompts = [dataclasses.replace(request, **nothing_else) for request in requests]
    said = evaluate_facts(apply(model, edit), prompts)
    return sum(bool(each["efficacy_accuracy"]) for each in said) / len(said)


def with_alternatives(
    editor: Editor, alternatives: Sequence[Mapping[str, Any]], harm_texts: list[str]
) -> Editor:
    """Return an editor that writes each step's facts as it harms least.

    Its name, hyper-parameters and context templates are those of the first.

    Args:
      editor: the first alternative.
      alternatives: the `editor` entries of the others, whole.
      harm_texts: whose loss is not to rise.
    """
    editors = [editor, *map(editor_from, alternatives)]
    templates = editor.context_templates
    most = [each.max_requests for each in editors if each.max_requests is not None]
    return Editor(
        name=editor.name,
        hyper=editor.hyper,
        slots=functools.partial(_slots, editors),
        init=functools.partial(_init, editors, harm_texts),
        edit=functools.partial(_edit, editors),
        restore=functools.partial(_restore, editors),
        context_templates=templates and (lambda state: templates(state.states[0])),
        dense=any(each.dense for each in editors),
        max_requests=min(most, default=None),
    )


def _slots(editors: Sequence[Editor], model: Model) -> dict[str, tuple[int, ...]]:
    """Return what any of the alternatives changes: weight -> layers."""
    layers_of: dict[str, set[int]] = {}
    for editor in editors:
        for weight, layers in editor.slots(model).items():
            layers_of.setdefault(weight, set()).update(layers)
    return {weight: tuple(sorted(layers)) for weight, layers in layers_of.items()}


def _init(
    editors: Sequence[Editor], harm_texts: list[str], model: Model, stats: Stats | None
) -> AlternativesState:
    """Read the texts whose loss is not to rise, at all places that an alternative changes."""
    places = places_of(_slots(editors, model))
    probe = read_parts(model, harm_texts, HARM_TOKENS, places)
    n_rows = len(probe.gradient_of[places[0]])
    states = tuple(editor.init(model, stats) for editor in editors)
    templates = tuple(
        editor.context_templates and editor.context_templates(state)
        for editor, state in zip(editors, states, strict=True)
    )
    return AlternativesState(states, templates, probe, np.zeros((n_rows, probe.n_texts)))


def _edit(
    editors: Sequence[Editor], model: Model, requests: list[Request], state: AlternativesState
) -> tuple[Edit, AlternativesState, dict[str, float]]:
    """Make each alternative's edit, and keep one.

    Raises:
      ValueError: the first alternative's, where none can make its edit.
    """
    attempts, errors = [], []
    for index, editor in enumerate(editors):
        try:
            attempts.append(_attempt(editor, index, model, requests, state))
        except ValueError as error:  # another one may do
            errors.append(error)
            logging.getLogger("jaxedit").warning(
                "alternative %d (%s) cannot write %s: %s",
                index,
                editor.name,
                requests[0].summary,
                error,
            )
    if not attempts:
        raise errors[0]
    best = min(attempts, key=_rank)
    memory = {f"{MEMORY}index": np.asarray(best.index), f"{MEMORY}scores": best.scores}
    made = dataclasses.replace(best.edit, memory={**best.edit.memory, **memory})
    info = {
        **best.info,
        "alternative": float(best.index),
        "alternative_predicted_nats": best.predicted_nats,
        "alternatives_said": float(sum(each.accuracy == 1 for each in attempts)),
        "alternatives_failed": float(len(errors)),
    }
    return made, _after(state, best.index, best.state, best.scores), info


def _restore(editors: Sequence[Editor], state: AlternativesState, made: Edit) -> AlternativesState:
    """Return the state after an edit made before, of whichever alternative."""
    index, scores = int(made.memory[f"{MEMORY}index"]), made.memory[f"{MEMORY}scores"]
    own = {name: each for name, each in made.memory.items() if not name.startswith(MEMORY)}
    made = dataclasses.replace(made, memory=own)
    return _after(state, index, editors[index].restore(state.states[index], made), scores)


def _attempt(
    editor: Editor, index: int, model: Model, requests: list[Request], state: AlternativesState
) -> Attempt:
    """Make an alternative's edit of a step, ask the model with it, and predict its harm."""
    made, after, info = editor.edit(model, requests, state.states[index])
    scores = loss_scores(state.probe, made.deltas)
    predicted_nats = change_of_scores(state.scores + scores).mean_nats()
    return Attempt(
        index, made, after, info, share_said(model, made, requests), scores, predicted_nats
    )


def _rank(attempt: Attempt) -> tuple[float, float, int]:
    """Order attempts: by the share that is said, then by the predicted change, then as given."""
    harm_nats = attempt.predicted_nats if math.isfinite(attempt.predicted_nats) else math.inf
    return -attempt.accuracy, harm_nats, attempt.index


def _after(state: AlternativesState, index: int, new: Any, scores: np.ndarray) -> AlternativesState:
    """Return the state after an edit of one alternative, whose editor's state is new."""
    states = (*state.states[:index], new, *state.states[index + 1 :])
    return state._replace(states=states, scores=state.scores + scores)
