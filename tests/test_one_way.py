"""Files are written whole or not at all, and JSON says which file it is of: each in one way.

`jaxedit.files` has `write_atomic` and `read_json`; the source is scanned for what goes past them.
"""

import ast
from collections.abc import Iterator

import pytest
from test_structure import modules, report, short, tree_of

ONE_WAY = "jaxedit.files"

# Who opens a file for writing: to append, or to write piece by piece under another name.
MAY_OPEN = {"jaxedit.study.journal_end", "jaxedit.exports.safetensors_stream"}
# A descriptor, or the null device.
STANDARD_OUTPUT = "open(where, 'w', encoding=encoding, errors=errors)"


def calls_past_the_one_way(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of calls that write a file in place or read JSON without its name."""
    buffers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value) == "io.BytesIO()"
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        first = ast.unparse(node.args[0]) if node.args else ""
        in_place = last in ("write_text", "write_bytes", "tofile")
        to_a_path = last in ("savefig", "savez", "savez_compressed") and first not in buffers
        of_a_file = name == "json.load" or (name == "json.loads" and "read_" in first)
        if in_place or to_a_path or of_a_file:
            yield node.lineno, ast.unparse(node)


def opens_to_write(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of calls that open a file for anything but reading."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "open":
            modes = [*node.args[:2], *(k.value for k in node.keywords if k.arg == "mode")]
            texts = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
            writes = any(is_mode(text) and set(text) & set("wax+") for text in texts)
            if writes and ast.unparse(node) != STANDARD_OUTPUT:
                yield node.lineno, ast.unparse(node)


def is_mode(text: object) -> bool:
    return isinstance(text, str) and bool(text) and set(text) <= set("rwaxbt+")


def test_files_are_written_and_json_is_read_in_one_way():
    found = []
    for module, path in modules().items():
        if module == ONE_WAY:
            continue
        calls = list(calls_past_the_one_way(tree_of(path)))
        if module not in MAY_OPEN:
            calls += opens_to_write(tree_of(path))
        found += [f"{short(path)}, line {line}: {text}" for line, text in calls]
    assert not found, report(found)


@pytest.mark.parametrize(
    ("source", "n_found"),
    [
        ("path.write_text(text)", 1),
        ("(folder / 'a').write_bytes(b'')", 1),
        ("figure.savefig(path, dpi=200)", 1),
        ("content = io.BytesIO()\nfigure.savefig(content, format='png')", 0),
        ("np.savez(path, a=1)", 1),
        ("buffer = io.BytesIO()\nnp.savez(buffer, a=1)", 0),
        ("json.load(file)", 1),
        ("json.loads(path.read_text(encoding='utf-8'))", 1),
        ("json.loads(line)", 0),
        ("open(path, 'w')", 1),
        ("path.open('ab')", 1),
        ("path.open(mode='wb')", 1),
        ("path.open('rb')", 0),
        ("open(path)", 0),
        ("Image.open(name)", 0),
    ],
)
def test_what_goes_past_is_found(source, n_found):
    tree = ast.parse(source)
    assert len([*calls_past_the_one_way(tree), *opens_to_write(tree)]) == n_found
