"""Editing methods: one file each, a pair of pure functions `init` and `edit` with published hyper-parameter names.

The file name is the method's name ("c-rome" is `c_rome.py`). A file offers `Hyper`, a frozen dataclass, and
`make(hyper) -> Editor`.
"""

import dataclasses
import difflib
import functools
import importlib
import numbers
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxedit.edits.edit import Edit
from jaxedit.edits.request import Request
from jaxedit.models.model import Model, anchored
from jaxedit.solving import spread
from jaxedit.solving.after import After, AfterState, begin, change
from jaxedit.solving.moments import Stats


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


def names() -> list[str]:
    """The methods there are."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def make_editor(name: str, **hyper: Any) -> Editor:
    """An editor by its method's name, with hyper-parameters under their published names.

    Every method also takes `max_norm_ratio`, `rect_keep` and `prune_log_base` (`jaxedit.solving.after`).

    Raises:
      ValueError: on an unknown method or hyper-parameter, or one that is missing.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        raise ValueError(
            f"unknown method {name!r}{f'; did you mean {close[0]!r}?' if close else '.'} Methods: {', '.join(names())}"
        )
    module = importlib.import_module(f"jaxedit.editors.{name.replace('-', '_')}")
    defaults = defaults_of(name)
    if "layers" in hyper and "layers" not in defaults:
        layers = list(hyper.pop("layers"))
        if len(layers) != 1 or "layer" in hyper:
            raise ValueError(f"{name} edits one layer: give layer=, or layers= with one entry; got layers={layers}")
        hyper["layer"] = layers[0]
    unknown = sorted(set(hyper) - set(defaults))
    if unknown:
        close = difflib.get_close_matches(unknown[0], defaults, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"{name} has no hyper-parameter {unknown[0]!r}{hint} It has: {', '.join(defaults)}")
    missing = [key for key, default in defaults.items() if default is dataclasses.MISSING and key not in hyper]
    if missing:
        raise ValueError(f"{name} needs {', '.join(f'{key}=' for key in missing)}")
    for key, value in hyper.items():
        _check_type(name, key, value)
    after = After(**{field.name: hyper.pop(field.name, None) for field in dataclasses.fields(After)})
    after.check()
    editor = module.make(module.Hyper(**hyper))
    editor = editor if after.is_idle else _with_after(editor, after)
    return _with_anchor(editor) if getattr(editor.hyper, "anchor", None) else editor


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


def _check_type(name: str, key: str, value: Any) -> None:
    """Raises a ValueError where a hyper-parameter's value is of another kind than its annotation says."""
    kind = hyper_types(name)[key]
    kinds = [typing.get_origin(k) or k for k in (typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,))]
    wider = {int: numbers.Integral, float: numbers.Real, tuple: (tuple, list)}
    accepted = [wider.get(k, k) for k in kinds]
    if not any(isinstance(value, k) for k in accepted) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join("nothing" if k is type(None) else getattr(k, "__name__", str(k)) for k in kinds)
        raise ValueError(f"{name} has {key}={value!r}; expected {expected}")


def batch_editor(name: str, hyper: spread.SpreadHyper, recipe: spread.Recipe) -> Editor:
    """The editor of a method that writes batches of facts over several layers."""
    return Editor(
        name=name,
        hyper=hyper,
        slots={spread.WEIGHT: tuple(hyper.layers)},
        init=functools.partial(spread.init, hyper, recipe),
        edit=functools.partial(spread.edit, hyper, recipe),
        absorb=spread.absorb,
    )


def defaults_of(name: str) -> dict[str, Any]:
    """A method's hyper-parameters with their defaults, those that must be given (dataclasses.MISSING) first."""
    module = importlib.import_module(f"jaxedit.editors.{name.replace('-', '_')}")
    fields = [*dataclasses.fields(module.Hyper), *dataclasses.fields(After)]
    return {field.name: field.default for field in sorted(fields, key=lambda field: field.default is not dataclasses.MISSING)}


def hyper_types(name: str) -> dict[str, Any]:
    """The types of a method's hyper-parameters."""
    module = importlib.import_module(f"jaxedit.editors.{name.replace('-', '_')}")
    return typing.get_type_hints(module.Hyper) | typing.get_type_hints(After)
