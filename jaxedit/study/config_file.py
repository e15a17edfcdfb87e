"""Finding and running the Python file of a configuration; what it raises is one line.

FILE, line N: KeyError: 'x'
"""

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from jaxedit.files import local_path

T = TypeVar("T")


def config_names() -> list[str]:
    """Return the names of the configurations that come with the package."""
    return sorted(path.stem for path in configs_folder().glob("[a-z]*.py"))


def configs_folder() -> Path:
    """Find the folder configs/, in a checkout or in an installed wheel.

    Raises:
      ValueError: where it is not there.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "laptop.py").is_file():
            return folder
    raise ValueError("configs/laptop.py is not there: the installation of jaxedit is not whole")


def find_config(name_or_path: str | Path) -> Path:
    """Find a configuration by path, or by its name in the package ("published").

    Raises:
      ValueError: where there is none.
    """
    path = local_path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in config_names():
        return configs_folder() / f"{name_or_path}.py"
    names = ", ".join(config_names())
    raise ValueError(
        f"{name_or_path} is not a configuration: expected a Python file with get_config(), or one "
        f"of {names}"
    )


def run_config_file(path: Path) -> ModuleType:
    """Run a configuration's file.

    Raises:
      ValueError: where it is no Python, or raises something; the message names file and line.
    """
    spec = importlib.util.spec_from_file_location("jaxedit_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a configuration: expected a Python file with get_config()")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    _call(path, lambda: loader.exec_module(module))
    return module


def call_get_config(module: ModuleType, path: Path, *arguments: str) -> ConfigDict:
    """Call a configuration's `get_config`.

    Raises:
      ValueError: where there is none, it raises something, or returns no ConfigDict.
    """
    remedy = "expected a function that returns jaxedit.study.config.default_config() with changes"
    get_config: Any = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"{path} has no get_config(): {remedy}")
    config = _call(path, lambda: get_config(*arguments))
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() of {path} returned {repr(config)[:80]}: {remedy}")
    return config


def _call(path: Path, work: Callable[[], T]) -> T:
    """Do what runs the file's code; say where it failed."""
    try:
        return work()
    except (Exception, SystemExit) as error:  # a configuration is a program: it may raise anything
        line, says = _line_of(error, path), " ".join(str(error).split())
        if isinstance(error, SyntaxError) and error.filename == str(path):
            line, says = error.lineno, error.msg
        where = f"{path}, line {line}" if line else str(path)
        kind = "" if isinstance(error, ValueError) and says else type(error).__name__
        raise ValueError(f"{where}: {': '.join(filter(None, (kind, says)))}") from error


def _line_of(error: BaseException, path: Path) -> int | None:
    """Return the line of the file that was being run when an error was raised; None: no line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return lines[-1] if lines else None
