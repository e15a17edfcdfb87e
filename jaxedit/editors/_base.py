"""What an editing method is, and what can be put around any of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxedit.edits.edit import Edit
from jaxedit.edits.request import Request
from jaxedit.models.model import Model, anchored
from jaxedit.solving import multi_layer
from jaxedit.solving.update_constraints import After, AfterState, begin, change
from jaxedit.stats.second_moments import Stats


class Editor(NamedTuple):
    """An editing method with its hyper-parameters.

    Attributes:
      name: the method's.
      hyper: the hyper-parameters, a frozen dataclass.
      slots: weight -> layers that its edits change, so that a study can make room once.
      init: (model, stats) -> state.
      edit: (model, requests, state) -> (edit, state, info); writes nothing; who keeps the edit keeps the state.
      absorb: (state, edit) -> state after an edit that was made before: rebuilds the state from a journal.
      each: (model, requests, state) -> for each request the edit that would write it alone, and its info; None where that is
        no cheaper than one after the other.
      dense: whether an edit holds whole matrices, which a journal then holds for every step.
    """

    name: str
    hyper: Any
    slots: dict[str, tuple[int, ...]]
    init: Callable[[Model, Stats | None], Any]
    edit: Callable[[Model, list[Request], Any], tuple[Edit, Any, dict[str, float]]]
    absorb: Callable[[Any, Edit], Any]
    each: Callable[[Model, list[Request], Any], list[tuple[Edit, dict[str, float]]]] | None = None
    dense: bool = False


def _with_after(editor: Editor, after: After) -> Editor:
    """The editor whose updates are changed before they are applied."""

    def init(model: Model, stats: Stats | None) -> AfterState:
        return begin(after, model, editor.init(model, stats), editor.slots)

    def edit(model: Model, requests: list[Request], state: AfterState) -> tuple[Edit, AfterState, dict[str, float]]:
        made, inner, info = editor.edit(model, requests, state.inner)
        return change(after, model, made, state.largest), state._replace(inner=inner), info

    def each(model: Model, requests: list[Request], state: AfterState) -> list[tuple[Edit, dict[str, float]]]:
        assert editor.each is not None
        return [(change(after, model, made, state.largest), info) for made, info in editor.each(model, requests, state.inner)]

    def absorb(state: AfterState, made: Edit) -> AfterState:
        return state._replace(inner=editor.absorb(state.inner, made))

    return editor._replace(init=init, edit=edit, absorb=absorb, each=editor.each and each, dense=editor.dense or after.is_dense)


def _with_anchor(editor: Editor) -> Editor:
    """The editor that begins every prompt with a begin-of-text token; its edits remember that."""

    def init(model: Model, stats: Stats | None) -> Any:
        return editor.init(anchored(model), stats)

    def edit(model: Model, requests: list[Request], state: Any) -> tuple[Edit, Any, dict[str, float]]:
        made, state, info = editor.edit(anchored(model), requests, state)
        return dataclasses.replace(made, anchor=editor.hyper.anchor), state, info

    def each(model: Model, requests: list[Request], state: Any) -> list[tuple[Edit, dict[str, float]]]:
        assert editor.each is not None
        made = editor.each(anchored(model), requests, state)
        return [(dataclasses.replace(edit, anchor=editor.hyper.anchor), info) for edit, info in made]

    return editor._replace(init=init, edit=edit, each=editor.each and each)


def batch_editor(name: str, hyper: multi_layer.SpreadHyper, recipe: multi_layer.Recipe) -> Editor:
    """The editor of a method that writes batches of facts over several layers."""
    return Editor(
        name=name,
        hyper=hyper,
        slots={multi_layer.WEIGHT: tuple(hyper.layers)},
        init=functools.partial(multi_layer.init, hyper, recipe),
        edit=functools.partial(multi_layer.edit, hyper, recipe),
        absorb=multi_layer.absorb,
    )
