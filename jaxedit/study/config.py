"""A study's configuration: every key there is, its default, and the editor built from it."""

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from jaxedit.did_you_mean import did_you_mean
from jaxedit.editors import (
    Editor,
    hyper_defaults,
    hyper_types,
    layer_field,
    make_editor,
    method_names,
    published_hyper,
    with_own_layer_name,
    with_text_paths,
)
from jaxedit.files import local_path
from jaxedit.models.model import Model
from jaxedit.study.config_file import call_get_config, find_config, run_config_file
from jaxedit.study.guard import Guard
from jaxedit.study.renamed import new_name

EVALUATION = dict(
    bos=None,  # a begin-of-text token before each text; None: as the tokenizer says
    perplexity_every=1,  # or "auto"
    kl_every=0,
    fluency_every=0,
    retention_every=0,
    prompts=(),
    reference_texts="",
    generated_every=0,
    generated_context="bare",  # or "qa", "chat"
    judge="",  # address of a server that speaks OpenAI's protocol; empty: no judge
    judge_model="",
    prediction_draws=0,  # of labels, by which the change of the loss is predicted; 0: it is not
)
AUTO = "auto"
START = dict(run="", run_steps=(), after_step=None, edit="")
GROUPS = {"start": START, "eval": EVALUATION, "guard": dataclasses.asdict(Guard())}

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list in []",
    object: f"a whole number, or {AUTO}",
}


def default_config(method: str = "rome", **hyper: Any) -> ConfigDict:
    """Return all keys of a study with their defaults.

    Args:
      method: the editing method.
      **hyper: its hyper-parameters under their published names.

    Raises:
      ValueError: on an unknown method or hyper-parameter.
    """
    config = ConfigDict()
    config.model = "smollm2-135m"  # a name, an HF directory or hub id, a .gguf file
    # Edits that it has from the start: those of a study's folder (as `--run`), or of a file.
    config.start = ConfigDict(START | dict(after_step=placeholder(int)))
    config.dtype = placeholder(str)  # of the stored weights: float32, bfloat16 on accelerators
    config.mesh = ""  # e.g. "data:4,model:2"; empty: all devices on data
    # Facts, texts and second moments.
    config.facts = "builtin"  # or a JSON file: this project's form, CounterFact, ZsRE, ...
    config.n_facts = 0  # take the first so many facts; 0: all
    config.texts = "builtin"  # whose perplexity is measured: a .json, .jsonl or .txt file
    config.stats = ""  # second moments from `jaxedit stats`, for methods that use them
    # How facts become edits.
    config.mode = "sequential"  # or "single": every edit on the untouched model
    config.facts_per_edit = 1
    config.single_batch_size = 16  # mode="single": edits computed per batch, the unit of resumption
    config.shard = ""  # "i/n": run only shard i of n (mode="single"); `jaxedit merge` joins them
    config.journal_dense_every = 1  # methods that change whole matrices: journal them every k edits
    config.alternatives = ()  # entries as `editor`: of all these edits the least harmful is made,
    config.harm_texts = ""  # by which the loss of these texts rises least
    config.screening = ""  # predicted damage: "log" it, "skip" hard facts, or write by "c-rome"
    # What is measured every k edits: the perplexity (also after the last), others (0: never).
    every = FieldReference(EVALUATION["perplexity_every"], field_type=object)
    config.eval = ConfigDict(EVALUATION | dict(bos=placeholder(bool), perplexity_every=every))
    config.guard = ConfigDict(GROUPS["guard"])
    config.editor = editor_config(method, **hyper)
    return config


def editor_config(method: str, **hyper: Any) -> ConfigDict:
    """Return a method's hyper-parameters, those without a default as typed placeholders.

    Raises:
      ValueError: on an unknown method or hyper-parameter.
    """
    if method not in method_names():
        raise ValueError(
            f"unknown method {method!r}{did_you_mean(method, method_names())} Methods: "
            f"{', '.join(method_names())}"
        )
    config = ConfigDict(dict(method=method))
    types, defaults = hyper_types(method), hyper_defaults(method)
    hyper = with_text_paths(with_own_layer_name(method, hyper))
    unknown = {name: value for name, value in hyper.items() if name not in defaults}
    if unknown:
        make_editor(method, **unknown)  # it raises, and says which there are
    for name, default in defaults.items():
        value = hyper.get(name, default)
        if value is None:
            kinds = typing.get_args(types[name]) or (types[name],)
            kind = next(kind for kind in kinds if kind is not type(None))
            value = placeholder(typing.get_origin(kind) or kind)
        config[name] = value
    return config


def plain_config(config: ConfigDict) -> dict[str, Any]:
    """Return a study's configuration as nested dictionaries with exactly the keys there are.

    Raises:
      ValueError: on a key that is unknown, missing, or has another name now.
    """
    values = config.to_dict()
    if "alternatives" in values:
        values["alternatives"] = tuple(map(_plain_entry, values["alternatives"]))
    known = default_config().to_dict()
    for group, default in {"": known, **GROUPS}.items():
        given = values.get(group, {}) if group else values
        if not isinstance(given, Mapping):
            raise ValueError(f"{group}={given!r}: expected an entry with {', '.join(default)}")
        prefix = f"{group}." if group else ""
        for key in given:
            if key not in default:
                raise ValueError(unknown_key(f"{prefix}{key}"))
        missing = [f"{prefix}{key}" for key in default if key not in given]
        if missing:
            raise ValueError(
                f"the configuration has no {', '.join(missing)}; begin with "
                "jaxedit.study.config.default_config"
            )
    return values


def _plain_entry(entry: Any) -> Any:
    """Return an alternative's entry; one of `editor_config` without the keys that have no value."""
    if not isinstance(entry, ConfigDict):
        return entry
    return {name: value for name, value in entry.to_dict().items() if value not in (None, ())}


def unknown_key(key: str) -> str:
    """Say what a configuration's key that is not known is called, or may be meant by it."""
    renamed = new_name(key)
    if renamed is not None:
        return f"the configuration's key {key!r} is called {renamed!r} now"
    prefix, _, name = key.rpartition(".")
    known = {"": default_config(), **GROUPS}.get(prefix, {})
    return (
        f"the configuration has the unknown key {key!r}{did_you_mean(name, known)} Known: "
        f"{', '.join(known)}"
    )


def set_key(config: ConfigDict, text: str) -> None:
    """Set one key of a configuration from text such as "editor.v_lr=0.3".

    A value is read as JSON where the key does not hold a text, so lists are [5] or ["a"].

    Raises:
      ValueError: on a key that is not there, or a value of another kind than the key has.
    """
    path, sign, value = text.partition("=")
    *parents, key = path.split(".")
    entry: Any = config
    for name in parents:
        entry = entry[name] if isinstance(entry, ConfigDict) and name in entry else None
    if new_name(path) is not None:
        raise ValueError(f"--set={text}: {unknown_key(path)}")
    if not sign or not isinstance(entry, ConfigDict) or key not in entry:
        close = did_you_mean(path, _paths(config))
        raise ValueError(f"--set={text}: expected KEY=VALUE with a key there is{close}")
    kind = entry.get_type(key)
    try:
        as_text = kind is str or (kind is object and value == AUTO)
        given = value if as_text else json.loads(value)
        given = tuple(given) if isinstance(given, list) else given
        entry[key] = float(given) if kind is float and isinstance(given, int) else given
    except (TypeError, ValueError) as error:
        expected = KINDS.get(kind, f"its own keys, e.g. {path}.KEY=VALUE")
        raise ValueError(f"--set={text}: expected {path}= with {expected}") from error


def _paths(config: ConfigDict, prefix: str = "") -> list[str]:
    """All keys of a configuration, dotted."""
    paths: list[str] = []
    for key in config:
        value = config[key]
        inner = isinstance(value, ConfigDict)
        paths += _paths(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return paths


def editor_from(config: Mapping[str, Any], **override: Any) -> Editor:
    """Make the editor of a configuration's `editor` entry; unset keys take their defaults."""
    hyper = {**config, **override}
    method = hyper.pop("method")
    return make_editor(method, **{key: value for key, value in hyper.items() if value is not None})


def with_tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters as a configuration takes them: lists of JSON as tuples."""
    return {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}


def with_published_layers(config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return a configuration's `editor` entry with the layers published for the model.

    Layers that are given stay.

    Raises:
      ValueError: where none are given and none are published.
    """
    name = layer_field(config["method"])
    if config.get(name) not in (None, (), []):
        return dict(config)
    return {**config, name: published_hyper(config["method"], model)[name]}


def split_argument(text: str) -> tuple[Path, str | None]:
    """Find the configuration in NAME_OR_PATH[:ARGUMENT]; a path may hold a colon itself.

    Raises:
      ValueError: where there is none.
    """
    parts = text.split(":")
    for n_parts in range(len(parts), 0, -1):
        path = local_path(":".join(parts[:n_parts]))
        if path.is_file():
            return path, ":".join(parts[n_parts:]) if n_parts < len(parts) else None
    name, colon, argument = text.partition(":")
    return find_config(name), argument if colon else None


def read_config(path: str | Path, argument: str | None = None) -> ConfigDict:
    """Run `get_config` of a configuration, with an argument where one is given.

    Raises:
      ValueError: where the file cannot be run or gives no configuration; the message says where.
    """
    path = find_config(path)
    return call_get_config(run_config_file(path), path, *(() if argument is None else (argument,)))


def read_variants(path: str | Path, chosen: list[str] | None = None) -> tuple[str, ...]:
    """Return the arguments that a configuration has a study for, or those chosen of them.

    Raises:
      ValueError: where the file names none, or one is chosen that it does not have.
    """
    known = variants_of(path)
    if not known:
        raise ValueError(
            f"{path} has no VARIANTS; expected a tuple of arguments for its get_config"
        )
    unknown = [name for name in chosen or () if name not in known]
    if unknown:
        raise ValueError(f"{path} has no variant {unknown[0]!r}; it has {', '.join(known)}")
    return tuple(chosen or known)


def check_variant(name: str, known: Iterable[str]) -> None:
    """Check the argument of a configuration.

    Raises:
      ValueError: where it is none of those that the configuration knows.
    """
    if name not in known:
        raise ValueError(f"unknown variant {name!r}; this configuration knows {', '.join(known)}")


def variants_of(path: str | Path) -> tuple[str, ...]:
    """Return the arguments that a configuration has a study for; none where it takes none.

    Raises:
      ValueError: where its VARIANTS are no tuple of texts.
    """
    path = find_config(path)
    names = getattr(run_config_file(path), "VARIANTS", ())
    is_list = isinstance(names, tuple | list | Mapping)
    if not is_list or not all(isinstance(each, str) for each in names):
        shown = repr(names)[:80]
        raise ValueError(f"{path} has VARIANTS={shown}; expected a tuple of texts")
    return tuple(names)
