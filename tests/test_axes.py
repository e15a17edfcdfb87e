"""The alphabet: every axis letter of the package is in the glossary, and none of it is unused."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import jaxedit
from jaxedit import axes
from jaxedit.models import family as families

PACKAGE = Path(jaxedit.__file__).parent
# A lower-case head and axes of which at least one is a letter: `h_BTD`, `place_Q2`, not `ppl_50`.
SUFFIXED = re.compile(r"_*[a-z][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)")
EQUATION_CALLS = ("einsum", "linear")
WORD_CALLS = ("partition", "shard_batch", "constrain", "parameter_sharding")


class Use(NamedTuple):
    """An array's name, an equation or a word of axes, and where it stands."""

    place: str
    name: str
    letters: str


def uses_in(source: str, file: str) -> Iterator[Use]:
    """Yield every use of axis letters in a module."""
    for node in ast.walk(ast.parse(source)):
        place = f"{file}:{getattr(node, 'lineno', 0)}"
        for name in names_of(node):
            if suffixed := SUFFIXED.fullmatch(name):
                yield Use(place, name, suffixed[1])
        if isinstance(node, ast.Call):
            for text in axis_texts_of(node):
                yield Use(place, text, text)


def names_of(node: ast.AST) -> list[str]:
    """Return the identifiers that a node itself spells."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
            return [name]
        case ast.keyword(arg=str(name)):
            return [name]
    return []


def axis_texts_of(call: ast.Call) -> list[str]:
    """Return a call's einsum equation, or the words of axes given to a sharding function."""
    called = getattr(call.func, "id", getattr(call.func, "attr", ""))
    texts = [node.value for arg in call.args for node in strings_in(arg)]
    if called in EQUATION_CALLS:
        return texts[:1]
    return [text for text in texts if called in WORD_CALLS and re.fullmatch("[A-Z_]+", text)]


def strings_in(argument: ast.expr) -> list[ast.Constant]:
    """Return the strings of an argument: itself, or those that it is added up from."""
    if isinstance(argument, ast.BinOp):
        return strings_in(argument.left) + strings_in(argument.right)
    is_text = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    return [argument] if is_text else []


def upper(text: str) -> set[str]:
    return set(re.findall("[A-Z]", text))


@pytest.fixture(scope="module")
def uses() -> list[Use]:
    """Every use of axis letters in the package."""
    return [
        use
        for path in sorted(PACKAGE.rglob("*.py"))
        for use in uses_in(path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE.parent)))
    ]


def test_names_equations_and_words_are_found_and_constants_are_not():
    source = """
class Sums(NamedTuple):
    high_EMF: Array
def f(h_BTD, MAX_BYTES, *, n_ABC=1):
    sums.low_EMF + take(w_V=2) + sums._own_Q2 + ppl_50 + _SCALE_T
    x_R: Array = einsum("QM,QF->MF", h_BTD)
    constrain(mesh, "BTV", shard_batch(mesh, "_B" + "Z", a)) + text.partition(":")
    linear("...D,DX->X", x_K, "IGNORED")
"""
    found = {(use.place, use.name) for use in uses_in(source, "m.py")}
    assert found == {
        ("m.py:3", "high_EMF"),
        ("m.py:4", "h_BTD"),
        ("m.py:4", "n_ABC"),
        ("m.py:5", "low_EMF"),
        ("m.py:5", "w_V"),
        ("m.py:5", "_own_Q2"),
        ("m.py:6", "x_R"),
        ("m.py:6", "h_BTD"),
        ("m.py:6", "QM,QF->MF"),
        ("m.py:7", "BTV"),
        ("m.py:7", "_B"),
        ("m.py:7", "Z"),
        ("m.py:8", "x_K"),
        ("m.py:8", "...D,DX->X"),
    }


def test_every_axis_letter_is_in_the_glossary(uses):
    unknown = [
        f"{use.place}: {use.name} ({letter})"
        for use in uses
        for letter in sorted(upper(use.letters) - set(axes.GLOSSARY))
    ]
    assert not unknown, "\n".join(["not in jaxedit.axes.GLOSSARY:", *unknown])


def test_no_letter_of_the_glossary_is_unused(uses):
    used = set().union(*(upper(use.letters) for use in uses), *axes.PARAMETERS.values())
    assert sorted(set(axes.GLOSSARY) - used) == []


def test_parameters_rules_and_layouts_are_spelled_with_the_glossary():
    words = [*axes.PARAMETERS.values(), *axes.ACTIVATION_RULES, *axes.PARAMETER_RULES]
    for name in families.family_names():
        family = families.find(name)
        tables = [family.WEIGHTS, getattr(family, "GGUF", {})]
        words += [entry[1] for table in tables for entry in table.values() if entry is not None]
    assert set().union(*map(upper, words)) <= set(axes.GLOSSARY)


def test_the_docstring_says_what_the_glossary_says():
    assert axes.__doc__ is not None
    listed = dict(re.findall(r"^    ([A-Z])  (.+)$", axes.__doc__, re.MULTILINE))
    assert listed == axes.GLOSSARY
