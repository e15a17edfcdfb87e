"""Importing: every module imports, none of them something heavy, and none hides a public name."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxedit

ROOT = Path(jaxedit.__file__).parents[1]
# Packages that take long to import, or that only some commands need: imported where they are used.
HEAVY = (
    "plotly",
    "sklearn",
    "nltk",
    "datasets",
    "matplotlib",
    "huggingface_hub",
    "transformers",
    "lm_eval",
    "orbax",
    "torch",
)


def all_modules() -> list[str]:
    """List the modules of the package; configurations that lie in a wheel are no part of it."""
    walked = pkgutil.walk_packages(jaxedit.__path__, "jaxedit.")
    return [module.name for module in walked if not module.name.startswith("jaxedit.configs")]


def heavy_after(names: list[str]) -> list[str]:
    """Return the heavy packages that a fresh process has after importing these modules."""
    script = f"import {', '.join(names)}, sys; print(*(m for m in {HEAVY} if m in sys.modules))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


def test_importing_the_package_imports_nothing_heavy():
    assert heavy_after(["jaxedit"]) == []


def test_heavy_packages_are_imported_where_they_are_used():
    """But for lm-eval's interface, a class of which ours is one, in a module of its own."""
    names = [name for name in all_modules() if name != "jaxedit.metrics.harness"]
    assert len(names) > 100
    assert heavy_after(names) == []


def test_no_subpackage_bears_the_name_of_a_public_function():
    """Importing it would replace the function by the module."""
    subpackages = {module.name for module in pkgutil.iter_modules(jaxedit.__path__)}
    assert {"models", "edits", "metrics"} <= subpackages
    assert not subpackages & set(jaxedit.__all__)


@pytest.fixture(scope="module")
def readme_example(shared) -> str:
    """README's example in Python, with a golden model in the place of the built-in one."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    model = repr(str(shared / "golden" / "llama"))
    example, n_models = re.subn(r'"smollm2-135m"', lambda _: model, example)
    # The golden models are no published ones, and have six layers.
    editor = 'make_editor("rome", layer=3, v_num_grad_steps=3)'
    example, n_editors = re.subn(r'make_editor\("rome"[^)]*\)', editor, example)
    assert (n_models, n_editors) == (1, 1)
    return example


def test_the_readme_example_works_after_every_module_is_imported(readme_example, capsys):
    for name in all_modules():
        importlib.import_module(name)
    assert all(callable(getattr(jaxedit, name)) for name in jaxedit.__all__)
    names: dict = {}
    exec(compile(readme_example, "README.md", "exec"), names)
    assert {"model", "edit", "edited", "info"} <= set(names)
    assert isinstance(names["edited"], jaxedit.Model)
    assert "The Eiffel Tower is located in the city of" in capsys.readouterr().out
