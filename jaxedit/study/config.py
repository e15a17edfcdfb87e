"""A study's configuration: every key there is, its default, and the editor built from it."""

import dataclasses
import difflib
import importlib.util
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

import jaxedit
from jaxedit.editors import Editor, hyper_defaults, hyper_types, make_editor, method_names

GUARD = dict(max_ppl_ratio=2.0, action="rollback", max_relative_perturbation=0.1)


def default_config(method: str = "rome", **hyper: Any) -> ConfigDict:
    """All keys of a study; `hyper` are the method's hyper-parameters under their published names.

    Raises:
      ValueError: on an unknown method or hyper-parameter.
    """
    config = ConfigDict()
    config.model = "smollm2-135m"  # a name, an HF directory or hub id, a .gguf file
    config.dtype = placeholder(
        str
    )  # of the stored weights; float32 on a CPU, bfloat16 on accelerators
    config.mesh = ""  # e.g. "data:4,model:2"; empty: all devices on data
    config.facts = "builtin"  # or a JSON file: this project's form, CounterFact, ZsRE
    config.n_facts = 0  # take the first so many facts; 0: all
    config.texts = "builtin"  # the texts whose perplexity is measured: a .json, .jsonl or .txt file
    config.stats = ""  # second moments from `jaxedit stats`, for methods that use them
    config.batch_size = 1  # facts in one edit
    config.perplexity_every = 1  # measure it after every so many edits, and after the last
    config.divergence_every = (
        0  # the KL to the unedited model on the texts, after every so many edits; 0: never
    )
    config.fluency_every = (
        0  # the n-gram entropy of what the model says to a fact's generation prompts
    )
    # where the ROME repository's reference texts lie: consistency too, whenever fluency is measured
    config.references = ""
    config.retention_every = 0  # whether the facts of all kept edits still hold; 0: at the end only
    # texts that the model continues before the first edit and each time `perplexity_every` is due
    config.prompts = ()
    # in mode single: so many are made together, where the method can; a lot is begun and ended
    # whole
    config.edits_at_once = 16
    config.part = ""  # e.g. "2/8" in mode single: the second of eight parts, lots taken turn about; `jaxedit merge` joins them
    config.snapshot_every = (
        1  # for methods that change whole matrices: journal them after every so many edits only
    )
    config.screen = ""  # predict each edit's damage first: "record" it, "hold" hard cases back, or write them by "c-rome"
    config.mode = "sequential"  # or "single": every edit on the untouched model
    config.guard = ConfigDict(GUARD)
    config.editor = editor_config(method, **hyper)
    return config


def editor_config(method: str, **hyper: Any) -> ConfigDict:
    """A method's hyper-parameters, those without a default as typed placeholders, so that flags can
    override each.
    """
    if method not in method_names():
        raise ValueError(
            f"unknown method {method!r}{_instead(method, method_names())} Methods: {', '.join(method_names())}"
        )
    config = ConfigDict(dict(method=method))
    types = hyper_types(method)
    for name, default in hyper_defaults(method).items():
        value = hyper.pop(name, default)
        if value is None or value is dataclasses.MISSING:
            kinds = [
                t for t in (typing.get_args(types[name]) or (types[name],)) if t is not type(None)
            ]
            value = placeholder(typing.get_origin(kinds[0]) or kinds[0])
        config[name] = value
    if hyper:
        known = list(hyper_defaults(method))
        unknown = next(iter(hyper))
        raise ValueError(
            f"{method} has no hyper-parameter {unknown!r}{_instead(unknown, known)} It has: {', '.join(known)}"
        )
    return config


def plain_config(config: ConfigDict) -> dict[str, Any]:
    """A study's configuration as nested dictionaries with exactly the keys of `default_config`; an
    editor's are its own.

    Raises:
      ValueError: on a key that is unknown or missing.
    """
    keys = config.to_dict()
    for prefix, given, default in (
        ("", keys, default_config().to_dict()),
        ("guard.", keys.get("guard", {}), GUARD),
    ):
        for key in given:
            if key not in default:
                hint = _instead(key, list(default))
                raise ValueError(
                    f"the configuration has the unknown key '{prefix}{key}'{hint} Known: {', '.join(default)}"
                )
        missing = [f"{prefix}{key}" for key in default if key not in given]
        if missing:
            raise ValueError(
                f"the configuration has no {', '.join(missing)}; begin with jaxedit.study.config.default_config"
            )
    return keys


def _instead(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def editor_from(config: dict[str, Any], **override: Any) -> Editor:
    """The editor that a configuration's `editor` entry describes; keys left unset take the method's
    defaults.
    """
    hyper = {**config, **override}
    method = hyper.pop("method")
    return make_editor(method, **{key: value for key, value in hyper.items() if value is not None})


def built_in_config() -> Path:
    """The configuration of the default run: configs/laptop.py, in a checkout or in an installed
    wheel.
    """
    package = Path(jaxedit.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "laptop.py").is_file():
            return folder / "laptop.py"
    raise ValueError("configs/laptop.py is not there: the installation of jaxedit is not whole")


def read_config(path: str | Path, argument: str | None = None) -> ConfigDict:
    """Runs `get_config` of a configuration file, with an argument where one is given
    (`configs/x.py:argument`).
    """
    module = _module(path)
    return module.get_config() if argument is None else module.get_config(argument)


def read_variants(path: str | Path, chosen: list[str] | None = None) -> tuple[str, ...]:
    """The arguments that a configuration file has a study for, or those chosen of them.

    Raises:
      ValueError: where the file names none, or one is chosen that it does not have.
    """
    known = tuple(getattr(_module(path), "VARIANTS", ()))
    if not known:
        raise ValueError(
            f"{path} has no VARIANTS; expected a tuple of arguments for its get_config"
        )
    unknown = [name for name in chosen or () if name not in known]
    if unknown:
        raise ValueError(f"{path} has no variant {unknown[0]!r}; it has {', '.join(known)}")
    return tuple(chosen or known)


def _module(path: str | Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("jaxedit_config", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"{path} is not a configuration: expected a Python file with get_config()")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
