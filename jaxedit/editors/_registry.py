"""Editors by their method's name, which is the name of a file in this folder."""

import dataclasses
import difflib
import importlib
import numbers
import types
import typing
from pathlib import Path
from typing import Any

from jaxedit.editors._base import Editor, with_begin_of_text, with_constraints
from jaxedit.solving.update_constraints import UpdateConstraints


def method_names() -> list[str]:
    """The methods there are."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def make_editor(name: str, **hyper: Any) -> Editor:
    """An editor by its method's name, with hyper-parameters under their published names.

    Every method also takes `max_norm_ratio`, `rect_keep` and `prune_log_base`
    (`jaxedit.solving.update_constraints`).

    Raises:
      ValueError: on an unknown method or hyper-parameter, or one that is missing.
    """
    if name not in method_names():
        close = difflib.get_close_matches(name, method_names(), n=1)
        raise ValueError(
            f"unknown method {name!r}{f'; did you mean {close[0]!r}?' if close else '.'} Methods: {', '.join(method_names())}"
        )
    module = importlib.import_module(f"jaxedit.editors.{name.replace('-', '_')}")
    defaults = hyper_defaults(name)
    if "layers" in hyper and "layers" not in defaults:
        layers = list(hyper.pop("layers"))
        if len(layers) != 1 or "layer" in hyper:
            raise ValueError(
                f"{name} edits one layer: give layer=, or layers= with one entry; got layers={layers}"
            )
        hyper["layer"] = layers[0]
    unknown = sorted(set(hyper) - set(defaults))
    if unknown:
        close = difflib.get_close_matches(unknown[0], defaults, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"{name} has no hyper-parameter {unknown[0]!r}{hint} It has: {', '.join(defaults)}"
        )
    missing = [
        key
        for key, default in defaults.items()
        if default is dataclasses.MISSING and key not in hyper
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(f'{key}=' for key in missing)}")
    for key, value in hyper.items():
        _check_type(name, key, value)
    constraints = UpdateConstraints(
        **{
            field.name: hyper.pop(field.name, None)
            for field in dataclasses.fields(UpdateConstraints)
        }
    )
    constraints.check()
    editor = module.make(module.Hyper(**hyper))
    editor = editor if constraints.is_empty else with_constraints(editor, constraints)
    return with_begin_of_text(editor) if getattr(editor.hyper, "anchor", None) else editor


def _check_type(name: str, key: str, value: Any) -> None:
    """Raises a ValueError where a hyper-parameter's value is of another kind than its annotation
    says.
    """
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


def hyper_defaults(name: str) -> dict[str, Any]:
    """A method's hyper-parameters with their defaults, those that must be given
    (dataclasses.MISSING) first.
    """
    module = importlib.import_module(f"jaxedit.editors.{name.replace('-', '_')}")
    fields = [*dataclasses.fields(module.Hyper), *dataclasses.fields(UpdateConstraints)]
    return {
        field.name: field.default
        for field in sorted(fields, key=lambda field: field.default is not dataclasses.MISSING)
    }


def hyper_types(name: str) -> dict[str, Any]:
    """The types of a method's hyper-parameters."""
    module = importlib.import_module(f"jaxedit.editors.{name.replace('-', '_')}")
    return typing.get_type_hints(module.Hyper) | typing.get_type_hints(UpdateConstraints)
