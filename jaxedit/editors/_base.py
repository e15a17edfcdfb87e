"""What an editing method is, and what can be put around any of them."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxedit.datasets import read_texts
from jaxedit.edits.edit import EDITED_WEIGHT, Edit
from jaxedit.edits.request import Request, check_requests
from jaxedit.edits.subjects import contradictions
from jaxedit.models.model import Model, with_bos
from jaxedit.solving import closed_form, lifelong, multi_layer, update_constraints
from jaxedit.solving.finite import check_finite_delta
from jaxedit.solving.harm_texts import read_harm_texts
from jaxedit.solving.hyper import ClosedFormHyper
from jaxedit.solving.rank_one import UpdateBound
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.update_constraints import ConstrainedState, UpdateConstraints
from jaxedit.stats.second_moments import Stats

MOST_NAMED = 3  # contradictions that a warning names
Info = dict[str, float]  # numbers of one edit: its loss, norms, the solver's residual


class Editor(NamedTuple):
    """An editing method with its hyper-parameters: a pair of pure functions `init` and `edit`.

    Attributes:
      name: the method's.
      hyper: the hyper-parameters, a frozen dataclass; its `anchor` is "bos" where a begin-of-text
        token is to stand in front of every prompt, else None.
      slots: (model) -> weight -> layers that its edits change, so that a study can allocate their
        deltas once.
      init: (model, stats) -> state.
      edit: (model, requests, state) -> (edit, state, info); writes nothing. Whoever keeps the edit
        keeps the state.
      restore: (state, edit) -> the state after an edit made before; rebuilds it from a journal.
      context_templates: (state) -> the templates it edits with; None where a method has none.
      edit_each: (model, requests, state) -> for each request the edit that would write it alone,
        and its info; None where that is no cheaper than one after the other.
      bound_updates: (model, requests, state) -> for each request what bounds its rank-one update
        before any optimisation; None for other methods.
      dense: whether an edit holds whole matrices, which a journal then holds for every step.
      max_requests: the most requests of one edit; None: any number.
    """

    name: str
    hyper: Any
    slots: Callable[[Model], Mapping[str, tuple[int, ...]]]
    init: Callable[[Model, Stats | None], Any]
    edit: Callable[[Model, list[Request], Any], tuple[Edit, Any, Info]]
    restore: Callable[[Any, Edit], Any]
    context_templates: Callable[[Any], Any] | None = None
    edit_each: Callable[[Model, list[Request], Any], list[tuple[Edit, Info]]] | None = None
    bound_updates: Callable[[Model, list[Request], Any], list[UpdateBound]] | None = None
    dense: bool = False
    max_requests: int | None = None


def with_constraints(editor: Editor, constraints: UpdateConstraints) -> Editor:
    """Return the editor with its updates constrained (RECT, PRUNE, SPHERE, a norm cap)."""

    def constrain(model: Model, made: Edit, state: ConstrainedState) -> Edit:
        constrained = update_constraints.apply_to(constraints, model, made, state.largest)
        for delta in constrained.deltas:
            check_finite_delta(delta)
        return constrained

    def init(model: Model, stats: Stats | None) -> ConstrainedState:
        inner = editor.init(model, stats)
        return update_constraints.init(constraints, model, inner, editor.slots(model))

    def edit(
        model: Model, requests: list[Request], state: ConstrainedState
    ) -> tuple[Edit, ConstrainedState, Info]:
        made, inner, info = editor.edit(model, requests, state.inner)
        return constrain(model, made, state), state._replace(inner=inner), info

    def restore(state: ConstrainedState, made: Edit) -> ConstrainedState:
        return state._replace(inner=editor.restore(state.inner, made))

    wrapped = editor._replace(init=init, edit=edit, restore=restore)
    templates, edit_each, bounds = editor.context_templates, editor.edit_each, editor.bound_updates
    return wrapped._replace(
        context_templates=templates and (lambda state: templates(state.inner)),
        edit_each=edit_each
        and (
            lambda model, requests, state: [
                (constrain(model, made, state), info)
                for made, info in edit_each(model, requests, state.inner)
            ]
        ),
        bound_updates=bounds
        and (lambda model, requests, state: bounds(model, requests, state.inner)),
        dense=editor.dense or constraints.is_dense,
    )


def with_begin_of_text(editor: Editor) -> Editor:
    """Return the editor with a begin-of-text token before every prompt; its edits remember it."""

    def remember(made: Edit) -> Edit:
        return dataclasses.replace(made, anchor=editor.hyper.anchor)

    def edit(model: Model, requests: list[Request], state: Any) -> tuple[Edit, Any, Info]:
        made, state, info = editor.edit(with_bos(model), requests, state)
        return remember(made), state, info

    edit_each, bounds = editor.edit_each, editor.bound_updates
    return editor._replace(
        init=lambda model, stats: editor.init(with_bos(model), stats),
        edit=edit,
        edit_each=edit_each
        and (
            lambda model, requests, state: [
                (remember(made), info) for made, info in edit_each(with_bos(model), requests, state)
            ]
        ),
        bound_updates=bounds
        and (lambda model, requests, state: bounds(with_bos(model), requests, state)),
    )


def with_layers_of(editor_for: Callable[[Model], Editor], unresolved: Editor) -> Editor:
    """Return an editor whose layers are those published for the model that it is given.

    Args:
      editor_for: (model) -> the editor with the model's published layers.
      unresolved: the same editor without layers; only what does not depend on them is used.
    """
    return unresolved._replace(
        slots=lambda model: editor_for(model).slots(model),
        init=lambda model, stats: editor_for(model).init(model, stats),
        edit=lambda model, requests, state: editor_for(model).edit(model, requests, state),
        edit_each=unresolved.edit_each
        and (lambda model, *more: (editor_for(model).edit_each or _missing)(model, *more)),
        bound_updates=unresolved.bound_updates
        and (lambda model, *more: (editor_for(model).bound_updates or _missing)(model, *more)),
    )


def _missing(*_: Any) -> Any:
    raise AssertionError("an editor has the same functions with and without layers")


def with_checked_requests(editor: Editor) -> Editor:
    """Return the editor that looks at the requests it is given, before it edits.

    A single request in place of a list raises a ValueError. Requests of one edit that contradict
    each other are warned of: what is written is a compromise between their answers.
    """
    edit_each, bounds = editor.edit_each, editor.bound_updates

    def edit(model: Model, requests: list[Request], state: Any) -> tuple[Edit, Any, Info]:
        requests = check_requests(requests)
        found = contradictions(requests)
        if found:
            more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
            logging.getLogger("jaxedit").warning(
                "requests of one edit contradict each other, and no edit can write both answers: "
                "%s%s",
                "; ".join(found[:MOST_NAMED]),
                more,
            )
        return editor.edit(model, requests, state)

    return editor._replace(
        edit=edit,
        edit_each=edit_each
        and (lambda model, requests, state: edit_each(model, check_requests(requests), state)),
        bound_updates=bounds
        and (lambda model, requests, state: bounds(model, check_requests(requests), state)),
    )


def with_harm_texts(
    editor: Editor, regularisers_of: Callable[[Any], Mapping[int, KeyRegulariser]]
) -> Editor:
    """Return the editor whose state knows the texts of its harm projection, where it has one.

    Args:
      editor: whose state has an entry `harm`.
      regularisers_of: (state) -> layer -> M before the first edit.
    """
    hyper = editor.hyper
    if not hyper.harm_projection:
        return editor

    def init(model: Model, stats: Stats | None) -> Any:
        state = editor.init(model, stats)
        texts = read_texts(hyper.harm_texts)
        return state._replace(harm=read_harm_texts(hyper, model, texts, regularisers_of(state)))

    return editor._replace(init=init)


def multi_layer_editor(name: str, hyper: ClosedFormHyper, spec: multi_layer.MethodSpec) -> Editor:
    """Return the editor of a method that writes batches of facts over several layers."""
    editor = Editor(
        name=name,
        hyper=hyper,
        slots=lambda model: {EDITED_WEIGHT: tuple(hyper.layers)},
        init=functools.partial(multi_layer.init, hyper, spec),
        edit=functools.partial(closed_form.edit, hyper, spec),
        restore=multi_layer.restore,
        context_templates=lambda state: state.context_templates,
    )
    return with_harm_texts(editor, lambda state: state.regularisers)


def lifelong_editor(name: str, hyper: lifelong.LifelongHyper) -> Editor:
    """Return the editor of a method that writes turns of facts in closed form."""
    return Editor(
        name=name,
        hyper=hyper,
        slots=lambda model: hyper.slots,
        init=functools.partial(lifelong.init, hyper),
        edit=functools.partial(lifelong.edit, hyper),
        restore=lifelong.restore,
    )
