"""How the package hangs together: imports run one way, privacy is kept, files stay readable.

Imports are read from the source, so that those inside functions and under TYPE_CHECKING count too.
"""

import ast
import functools
import graphlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from jaxedit.models import score
from jaxedit.solving import keys, solve, value
from jaxedit.stats import collect

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "jaxedit"
FACE = "jaxedit"  # what `import jaxedit` gives: the top of everything

# Each module and folder of the package; it imports from its own floor and from those before it.
FLOORS = [
    {
        "axes",
        "chat_server",
        "compilation_cache",
        "did_you_mean",
        "distributed",
        "downloads",
        "files",
        "mesh",
        "npy",
        "messages",
        "remote",
        "rounding",
        "timing",
        "torch_files",
    },
    {"models"},
    {"edits"},
    {"stats"},
    {"solving"},
    {"mend"},
    {"datasets", "editors"},
    {"bench", "bytes_moved", "flops", "metrics", "needs", "plan"},
    {"study"},
    {"analyses", "exports", "hard_cases", "imports"},
    {"reports"},
    {"cli"},
    {FACE, "__main__"},
]

NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}  # its public methods
DOCUMENTED = {"os._exit"}

MOST_LINES, MOST_FUNCTION_LINES, MOST_COLUMNS = 300, 60, 100


class Import(NamedTuple):
    """An import of a module of the package by another."""

    importer: str
    line: int
    imported: str  # the module
    name: str  # what is taken from it; "" for the module itself

    def __str__(self) -> str:
        taken = f" ({self.name})" if self.name else ""
        return f"{self.importer}, line {self.line}, imports {self.imported}{taken}"


@functools.cache
def modules() -> dict[str, Path]:
    """The modules of the package by their dotted names; a folder's is that of its __init__.py."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def folder_of(module: str) -> str:
    """The package that a module stands in; a folder's __init__.py stands in the folder."""
    return module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]


def imports() -> Iterator[Import]:
    """All imports of modules of the package within it."""
    for importer, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if inner in modules():
                        yield Import(importer, node.lineno, inner, "")
                    elif node.module in modules():
                        yield Import(importer, node.lineno, str(node.module), alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in modules():
                        yield Import(importer, node.lineno, alias.name, "")


def circle_in(found: Iterable[Import]) -> list[str]:
    """Find modules each of which imports the next, the last one being the first again."""
    sorter = graphlib.TopologicalSorter()
    for each in found:
        sorter.add(each.importer, each.imported)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]  # it lists what is imported before who imports it
    return []


def room_of(module: str) -> str:
    """The part of the package that a module belongs to: "solving" of "jaxedit.solving.keys"."""
    return module.split(".")[1] if "." in module else FACE


def floor_of(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room_of(module) in floor)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def python_files() -> list[Path]:
    """The files of the package, of the configurations and of the tests."""
    folders = (PACKAGE, REPOSITORY / "configs", REPOSITORY / "tests")
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def report(problems: list[str]) -> str:
    """One problem a line, for the message of an assertion."""
    return "\n".join([f"{len(problems)} found:", *problems])


def test_every_part_of_the_package_has_a_floor():
    rooms = {room_of(module) for module in modules()}
    assert rooms == set().union(*FLOORS)


def test_imports_go_to_the_same_floor_or_down():
    """`import jaxedit` within the package goes to the top; the module that defines is imported."""
    upward = [each for each in imports() if floor_of(each.imported) > floor_of(each.importer)]
    assert not upward, report(list(map(str, upward)))


def test_no_modules_import_each_other_in_a_circle():
    circle = circle_in(imports())
    assert not circle, " imports ".join(circle)


def test_a_circle_of_imports_is_found():
    """In the order of the imports, beside imports that are in no circle."""
    pairs = [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")]
    straight = [Import(importer, 1, imported, "") for importer, imported in pairs]
    assert circle_in(straight) == []
    *circle, again = circle_in([*straight, Import("d", 2, "b", "name")])
    assert again == circle[0]
    assert sorted(circle) == ["b", "c", "d"]
    steps = set(zip(circle, [*circle[1:], again], strict=True))
    assert steps == {("b", "c"), ("c", "d"), ("d", "b")}
    assert circle_in([Import("a", 1, "a", "name")]) == ["a", "a"]


def test_nothing_private_is_imported_from_another_module():
    """A file whose name begins with an underscore belongs to its folder, and to no other."""
    private = [each for each in imports() if each.name.startswith("_") and each.name[1] != "_"]
    for each in imports():
        folder, _, file = each.imported.rpartition(".")
        if (
            file.startswith("_")
            and not file.startswith("__")
            and folder != folder_of(each.importer)
        ):
            private.append(each)
    assert not private, report(list(map(str, private)))


def test_nothing_private_of_another_object_is_accessed():
    """`self._name` is a class's own, and so is `cls._name`; anything else is somebody else's."""
    found = []
    for path in modules().values():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            is_public = node.attr in NAMED_TUPLE or node.attr.startswith("__")
            if not (is_own or is_public or ast.unparse(node) in DOCUMENTED):
                found.append(f"{short(path)}, line {node.lineno}: {ast.unparse(node)}")
    assert not found, report(found)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (score, "token_losses_of_batch"),
        (keys, "prefill_shared"),
        (keys, "read_positions"),
        (value, "optimise_batch"),
        (solve, "whiten"),
        (solve, "unwhiten"),
        (solve, "product"),
        (collect, "add_batch"),
    ],
)
def test_a_step_that_a_plan_compiles_is_public_and_jitted(module, name):
    """`jaxedit.plan.phases` lowers these by name."""
    assert isinstance(getattr(module, name), jax.stages.Wrapped)


def test_every_module_has_a_docstring():
    found = [short(path) for path in modules().values() if not ast.get_docstring(tree_of(path))]
    assert not found, report(found)


def test_no_file_is_too_long():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in python_files()}
    found = [
        f"{short(path)}: {n} lines, at most {MOST_LINES}"
        for path, n in lengths.items()
        if n > MOST_LINES
    ]
    assert not found, report(found)


def test_no_function_of_the_package_is_too_long():
    """From its `def` to its end, docstring included."""
    found = []
    for path in modules().values():
        for node in functions(path):
            n = (node.end_lineno or node.lineno) - node.lineno + 1
            if n > MOST_FUNCTION_LINES:
                where = f"{short(path)}, line {node.lineno}: {node.name}"
                found.append(f"{where}: {n} lines, at most {MOST_FUNCTION_LINES}")
    assert not found, report(found)


def test_no_line_is_too_long():
    found = []
    for path in python_files():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if len(line) > MOST_COLUMNS:
                where = f"{short(path)}, line {number}"
                found.append(f"{where}: {len(line)} columns, at most {MOST_COLUMNS}")
    assert not found, report(found)
