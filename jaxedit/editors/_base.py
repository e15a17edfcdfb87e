"""What an editing method is, and what can be put around any of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxedit.edits.edit import Edit
from jaxedit.edits.request import Request
from jaxedit.models.model import Model, with_bos
from jaxedit.solving import multi_layer, update_constraints
from jaxedit.solving.update_constraints import ConstrainedState, UpdateConstraints, apply_to
from jaxedit.stats.second_moments import Stats


class Editor(NamedTuple):
    """An editing method with its hyper-parameters.

    Attributes:
      name: the method's.
      hyper: the hyper-parameters, a frozen dataclass.
      slots: weight -> layers that its edits change, so that a study can make room once.
      init: (model, stats) -> state.
      edit: (model, requests, state) -> (edit, state, info); writes nothing; who keeps the edit
        keeps the state.
      restore: (state, edit) -> state after an edit that was made before: rebuilds the state from a
        journal.
      edit_each: (model, requests, state) -> for each request the edit that would write it alone,
        and its info; None where that is no cheaper than one after the other.
      dense: whether an edit holds whole matrices, which a journal then holds for every step.
    """

    name: str
    hyper: Any
    slots: dict[str, tuple[int, ...]]
    init: Callable[[Model, Stats | None], Any]
    edit: Callable[[Model, list[Request], Any], tuple[Edit, Any, dict[str, float]]]
    restore: Callable[[Any, Edit], Any]
    edit_each: Callable[[Model, list[Request], Any], list[tuple[Edit, dict[str, float]]]] | None = (
        None
    )
    dense: bool = False


def with_constraints(editor: Editor, constraints: UpdateConstraints) -> Editor:
    """The editor whose updates are changed before they are applied."""

    def init(model: Model, stats: Stats | None) -> ConstrainedState:
        return update_constraints.init(constraints, model, editor.init(model, stats), editor.slots)

    def edit(
        model: Model, requests: list[Request], state: ConstrainedState
    ) -> tuple[Edit, ConstrainedState, dict[str, float]]:
        made, inner, info = editor.edit(model, requests, state.inner)
        return apply_to(constraints, model, made, state.largest), state._replace(inner=inner), info

    def edit_each(
        model: Model, requests: list[Request], state: ConstrainedState
    ) -> list[tuple[Edit, dict[str, float]]]:
        assert editor.edit_each is not None
        return [
            (apply_to(constraints, model, made, state.largest), info)
            for made, info in editor.edit_each(model, requests, state.inner)
        ]

    def restore(state: ConstrainedState, made: Edit) -> ConstrainedState:
        return state._replace(inner=editor.restore(state.inner, made))

    return editor._replace(
        init=init,
        edit=edit,
        restore=restore,
        edit_each=editor.edit_each and edit_each,
        dense=editor.dense or constraints.is_dense,
    )


def with_begin_of_text(editor: Editor) -> Editor:
    """The editor that begins every prompt with a begin-of-text token; its edits remember that."""

    def init(model: Model, stats: Stats | None) -> Any:
        return editor.init(with_bos(model), stats)

    def edit(
        model: Model, requests: list[Request], state: Any
    ) -> tuple[Edit, Any, dict[str, float]]:
        made, state, info = editor.edit(with_bos(model), requests, state)
        return dataclasses.replace(made, anchor=editor.hyper.anchor), state, info

    def edit_each(
        model: Model, requests: list[Request], state: Any
    ) -> list[tuple[Edit, dict[str, float]]]:
        assert editor.edit_each is not None
        made = editor.edit_each(with_bos(model), requests, state)
        return [
            (dataclasses.replace(edit, anchor=editor.hyper.anchor), info) for edit, info in made
        ]

    return editor._replace(init=init, edit=edit, edit_each=editor.edit_each and edit_each)


def multi_layer_editor(
    name: str, hyper: multi_layer.MultiLayerHyper, spec: multi_layer.MethodSpec
) -> Editor:
    """The editor of a method that writes batches of facts over several layers."""
    return Editor(
        name=name,
        hyper=hyper,
        slots={multi_layer.WEIGHT: tuple(hyper.layers)},
        init=functools.partial(multi_layer.init, hyper, spec),
        edit=functools.partial(multi_layer.edit, hyper, spec),
        restore=multi_layer.restore,
    )
