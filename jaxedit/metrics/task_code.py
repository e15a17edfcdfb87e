"""Task files of one's own are data: what would run code out of them is refused.

lm-eval's installed tasks may have functions in Python files beside them. A task file in any other
place may include such a task, but has no functions itself, and no data set, metric or answer that
is a program. Its templates are rendered in jinja2's sandbox.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxedit.files import local_path

SWITCHES = ("trust_remote_code", "hf_evaluate")  # what lets code run


@dataclasses.dataclass(frozen=True)
class _Function:
    """What `!function NAME` in a task file names."""

    name: str


def check_task_code(task_path: Path) -> None:
    """Check that no task file in a directory, nor what one includes, asks for code to be run.

    Raises:
      ValueError: where one does, or cannot be read as plain YAML.
    """
    import lm_eval

    installed = Path(lm_eval.__file__).resolve().parent
    seen: set[Path] = set()
    left = sorted(task_path.rglob("*.yaml"))
    while left:
        path = local_path(left.pop()).resolve()
        if path in seen or path.is_relative_to(installed):
            continue
        seen.add(path)
        content = _read_yaml(path)
        if isinstance(content, dict):
            _check_content(path, content)
            left += [path.parent / name for name in _as_list(content.get("include"))]


def _as_list(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [each for each in listed if isinstance(each, str)]


def _read_yaml(path: Path) -> Any:
    """Read a task file; functions stay names."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain YAML, and lm-eval's tag of functions."""

    Loader.add_constructor(
        "!function", lambda loader, node: _Function(str(getattr(node, "value", "")))
    )
    try:
        return yaml.load(path.read_bytes(), Loader=Loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as plain YAML: {reason}") from error


def _check_content(path: Path, content: dict[Any, Any]) -> None:
    """Raise where a task file asks for code to be run."""
    from lm_eval.api import metrics, registry

    known = {*registry.METRIC_REGISTRY, *getattr(metrics, "METRIC_REGISTRY", ())}
    for key, value in _entries(content):
        # A file's own `unsafe_code: false` would win over what the task says that it includes.
        is_switch = key == "unsafe_code" or (key in SWITCHES and value not in (False, None))
        is_metric = isinstance(value, _Function) or (isinstance(value, str) and value in known)
        is_foreign = key == "metric" and not is_metric
        if isinstance(value, _Function) or is_switch or is_foreign or key == "class":
            what = f"!function {value.name}" if isinstance(value, _Function) else f"{key}: {value}"
            raise ValueError(
                f"{path} has {what}: no code is run that a task file asks for; leave it out, take "
                "a metric of lm-eval's own, or include: a task that lm-eval was installed with"
            )


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """Walk through all keys and values, at any depth; entries of a list have the list's key."""
    left = [(None, value)]
    while left:
        key, value = left.pop()
        yield key, value
        if isinstance(value, dict):
            left += list(value.items())
        elif isinstance(value, list | tuple):
            left += [(key, each) for each in value]


def check_unsafe(index: dict[str, Any], tasks: list[str]) -> None:
    """Check that no task runs what the model writes as a program (HumanEval, say).

    Args:
      index: of lm-eval's `TaskManager`.
      tasks: names of tasks, groups and tags in it.

    Raises:
      ValueError: where one does.
    """
    left, seen = list(tasks), set()
    while left:
        name = left.pop()
        if name in seen or name not in index:
            continue
        seen.add(name)
        config = index[name].cfg
        if config is None:  # a tag: its tasks
            left += index[name].tags
            continue
        if config.get("unsafe_code"):
            raise ValueError(
                f"the task {name} runs what the model writes as a program (unsafe_code), which is "
                "not done here: take other tasks"
            )
        members = config.get("task", [])
        members = [each for key, each in _entries(members) if key in (None, "task", "group")]
        left += _as_list(members)


@contextlib.contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Have lm-eval render the templates of tasks in a sandbox, which its own environment is not."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    own = utils.env
    sandbox = SandboxedEnvironment(
        loader=own.loader,
        undefined=own.undefined,
        keep_trailing_newline=own.keep_trailing_newline,
    )
    sandbox.filters.update(own.filters)
    utils.env = sandbox
    try:
        yield
    finally:
        utils.env = own
