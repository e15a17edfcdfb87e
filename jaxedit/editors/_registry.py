"""Editors by their method's name, which is the name of a file in this folder."""

import dataclasses
import importlib
import numbers
import os
import types
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxedit.did_you_mean import did_you_mean
from jaxedit.editors._base import (
    Editor,
    with_begin_of_text,
    with_checked_requests,
    with_constraints,
    with_layers_of,
)
from jaxedit.editors._published import published_hyper
from jaxedit.files import expand_home
from jaxedit.models.model import Model
from jaxedit.solving.hyper import HarmHyper
from jaxedit.solving.ranges import check_ranges
from jaxedit.solving.sphere import SphereHyper
from jaxedit.solving.update_constraints import UpdateConstraints

PATHS = ("harm_texts", "network", "target_cache")  # hyper-parameters that name a file or folder
# Hyper-parameters under the names they had before version 0.1.
RENAMED_HYPER = {
    "ease_at_argmax": "reduce_nll_when_correct",
    "keys": "key_variant",
    "norm_anchor": "keep_unedited_norm",
}


def method_names() -> list[str]:
    """List the methods."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def make_editor(name: str, **hyper: Any) -> Editor:
    """Make an editor by its method's name, with hyper-parameters under their published names.

    Without `layer` (or `layers`) those published for the model are taken when `init` sees it. Every
    method also takes `max_norm_ratio`, `rect_keep`, `prune_log_base` and SPHERE's
    (`jaxedit.solving.update_constraints`).

    Raises:
      ValueError: on an unknown method or hyper-parameter, or a value of another type. `init` raises
        one where no layer was given and none is published for the model.
    """
    if name not in method_names():
        raise ValueError(
            f"unknown method {name!r}{did_you_mean(name, method_names())} Methods: "
            f"{', '.join(method_names())}"
        )
    hyper = _checked(name, hyper)
    layer_name = layer_field(name)
    if hyper.get(layer_name) not in (None, (), []):
        return with_checked_requests(_build(name, hyper))

    def editor_for(model: Model) -> Editor:
        published = published_hyper(name, model)
        return _build(name, {**hyper, layer_name: published[layer_name]})

    return with_checked_requests(with_layers_of(editor_for, _build(name, hyper)))


def layer_field(name: str) -> str:
    """Return what a method calls the layers it edits: "layer" or "layers"."""
    return "layer" if "layer" in hyper_defaults(name) else "layers"


def with_own_layer_name(name: str, hyper: dict[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters whose `layers` are `layer` where the method edits one.

    Raises:
      ValueError: where it does, and they are several, or both are given.
    """
    if "layers" not in hyper or layer_field(name) == "layers":
        return hyper
    layers = hyper["layers"]
    layers = list(layers) if isinstance(layers, tuple | list) else [layers]
    if len(layers) != 1 or "layer" in hyper:
        raise ValueError(
            f"{name} edits one layer: give layer=, or layers= with one entry; got layers={layers}"
        )
    rest = {key: value for key, value in hyper.items() if key != "layers"}
    return {**rest, "layer": layers[0]}


def with_text_paths(hyper: dict[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters whose files and folders are texts, the home for a leading ~."""
    given = {key: hyper[key] for key in PATHS if isinstance(hyper.get(key), str | os.PathLike)}
    return hyper | {key: expand_home(place) for key, place in given.items()}


def _checked(name: str, hyper: dict[str, Any]) -> dict[str, Any]:
    """Check names and types of hyper-parameters; return them as a method's `Hyper` takes them.

    Numbers become Python's own.
    """
    defaults = hyper_defaults(name)
    hyper = with_text_paths(with_own_layer_name(name, hyper))
    for key in hyper:
        if key in RENAMED_HYPER:
            raise ValueError(f"the hyper-parameter {key!r} is called {RENAMED_HYPER[key]!r} now")
        if key not in defaults:
            raise ValueError(
                f"{name} has no hyper-parameter {key!r}{did_you_mean(key, defaults)} It has: "
                f"{', '.join(defaults)}"
            )
    for key, value in hyper.items():
        _check_type(name, key, value)
    return {key: _plain(value) for key, value in hyper.items()}


def _plain(value: Any) -> Any:
    """Return numbers of NumPy as Python's: hyper-parameters are written as JSON."""
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _build(name: str, hyper: dict[str, Any]) -> Editor:
    """Make an editor with what is put around its method."""
    module = _method_module(name)
    own_names = {field.name for field in dataclasses.fields(module.Hyper)}
    own = module.Hyper(**{key: value for key, value in hyper.items() if key in own_names})
    constraints = UpdateConstraints(
        **{key: value for key, value in hyper.items() if key not in own_names}
    )
    for each in (constraints, own):
        check_ranges(each)
        if isinstance(each, SphereHyper):
            each.check_sphere()
        if isinstance(each, HarmHyper):
            each.check_harm()
    editor: Editor = module.make(own)
    editor = editor if constraints.is_empty else with_constraints(editor, constraints)
    return with_begin_of_text(editor) if editor.hyper.anchor else editor


def _method_module(name: str) -> ModuleType:
    return importlib.import_module(f"jaxedit.editors.{name.replace('-', '_')}")


def _check_type(name: str, key: str, value: Any) -> None:
    """Raise a ValueError where a value is of another kind than its annotation says."""
    kind = hyper_types(name)[key]
    kinds = [
        typing.get_origin(k) or k
        for k in (typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,))
    ]
    wider = {int: numbers.Integral, float: numbers.Real, tuple: (tuple, list)}
    accepted = [wider.get(k, k) for k in kinds]
    if not any(isinstance(value, k) for k in accepted) or (
        isinstance(value, bool) and bool not in kinds
    ):
        expected = " or ".join(
            "nothing" if k is type(None) else getattr(k, "__name__", str(k)) for k in kinds
        )
        raise ValueError(f"{name} has {key}={value!r}; expected {expected}")
    if kind == tuple[int, ...]:
        items: Any = value
        if any(isinstance(item, bool) or not isinstance(item, numbers.Integral) for item in items):
            raise ValueError(f"{name} has {key}={value!r}; expected whole numbers in a list")


def hyper_defaults(name: str) -> dict[str, Any]:
    """Return a method's hyper-parameters with their defaults.

    No layers stand for those published for the model.
    """
    hyper = _method_module(name).Hyper
    own = {field.name: field.default for field in dataclasses.fields(hyper)}
    others = {field.name: field.default for field in dataclasses.fields(UpdateConstraints)}
    defaults = own | {name: value for name, value in others.items() if name not in own}
    names = sorted(defaults, key=lambda name: name not in ("layer", "layers"))  # stable
    return {name: defaults[name] for name in names}


def hyper_types(name: str) -> dict[str, Any]:
    """Return the types of a method's hyper-parameters."""
    module = _method_module(name)
    types = typing.get_type_hints(UpdateConstraints) | typing.get_type_hints(module.Hyper)
    return {key: types[key] for key in hyper_defaults(name)}
