"""The file run.json: what a study is, read, compared and written."""

import importlib.metadata
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxedit.files import flatten_keys, read_json, shorten_json, write_atomic
from jaxedit.study.chain import WRITTEN, is_sealed, seal
from jaxedit.study.config import GROUPS
from jaxedit.study.record import SCHEMA
from jaxedit.study.upgrade import upgrade_run

FILE = "run.json"
PACKAGES = ("jaxedit", "jax", "jaxlib", "tokenizers", "transformers")
OF_TOKENIZERS = ("tokenizers", "transformers")  # the tokenizer's fingerprint depends on them
# What older versions did not write: it is compared only where it is there.
NEWER = ("fingerprints", "versions")


def installed_versions() -> dict[str, str]:
    """Return the versions of what computes a study's numbers."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def read_run_file(folder: Path) -> dict[str, Any]:
    """Read run.json as it is there.

    Raises:
      ValueError: where it is not a study's, was changed since it was written, or is of a newer
        schema.
    """
    path = folder / FILE
    try:
        run = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON of a study ({error}); restore it from a copy, if {folder} is a "
            "study's work directory"
        ) from error
    schema = run.get("schema", 0)
    if isinstance(schema, bool) or not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(
            f"{path} has schema {schema!r}; this version of jaxedit reads 0 to {SCHEMA}. A newer "
            "version wrote it: update jaxedit"
        )
    has_digest = schema == SCHEMA or "digest" in run
    if has_digest and not is_sealed(run):
        raise ValueError(f"{path} was changed since it was written; restore it from a copy")
    if not has_digest:
        _check_older(path, run)
    return run


def _check_older(path: Path, run: Mapping[str, Any]) -> None:
    """Check the types of what an older version wrote, which has no digest."""
    config = run.get("config")
    if config is None:  # no study's: whoever goes on with it finds that it is another's
        return
    groups = (*GROUPS, "editor")
    wrong = [
        name
        for name in groups
        if isinstance(config, Mapping) and not isinstance(config.get(name, {}), Mapping)
    ]
    if not isinstance(config, Mapping) or wrong:
        name = f"config.{wrong[0]}" if wrong else "config"
        raise ValueError(f"{path}: {name} must be an object; restore it from a copy")
    if "model_fingerprint" in run:  # a study's own, which has these
        texts = {f"config.{name}": config.get(name) for name in ("model", "mode")}
        texts["config.editor.method"] = config.get("editor", {}).get("method")
        for name, value in texts.items():
            if not isinstance(value, str):
                raise ValueError(
                    f"{path}: {name} must be a text, it is {shorten_json(value)}; restore it from "
                    "a copy"
                )


def without_digest(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what run.json says of the study, upgraded to this schema."""
    upgraded = upgrade_run(run)
    return {key: value for key, value in upgraded.items() if key not in WRITTEN[1:]}


def write_run_file(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Write run.json; return its content.

    Raises:
      OSError: where it cannot be written; it is then as it was.
    """
    sealed = seal(run)
    content = json.dumps(sealed, indent=2, ensure_ascii=False) + "\n"
    write_atomic(folder / FILE, content)
    return sealed


def take_over(
    folder: Path, raw: Mapping[str, Any], run_now: Mapping[str, Any], may_differ: tuple[str, ...]
) -> dict[str, Any]:
    """Return the content of run.json for a study that goes on.

    Args:
      folder: the work directory.
      raw: the content so far.
      run_now: what the study is now, the same but for what may differ.
      may_differ: dotted keys of which those of now are written.

    Raises:
      ValueError: where another study is asked for; the message names the keys that differ.
    """
    then = without_digest(raw)
    _check_same_study(folder, then, run_now, may_differ)
    _tell_versions(folder, then, run_now)
    if raw.get("schema") != SCHEMA:
        return {**run_now, "upgraded_from": raw.get("schema", 0)}
    return _with_new_values(raw, run_now, may_differ)


def _with_new_values(
    then: Mapping[str, Any], now: Mapping[str, Any], may_differ: tuple[str, ...], prefix: str = ""
) -> dict[str, Any]:
    """Return `then` with the values of `now` under keys that may differ."""
    values: dict[str, Any] = {}
    for key, value in then.items():
        path, new = f"{prefix}{key}", now.get(key)
        if path.startswith(may_differ):
            if key in now:
                values[key] = new
        elif isinstance(value, Mapping) and isinstance(new, Mapping):
            values[key] = _with_new_values(value, new, may_differ, f"{path}.")
        else:
            values[key] = value
    added = [key for key in now if key not in then and f"{prefix}{key}".startswith(may_differ)]
    return values | {key: now[key] for key in added}


def differing_keys(
    then: Mapping[str, Any], now: Mapping[str, Any], may_differ: tuple[str, ...]
) -> list[str]:
    """List the dotted keys in which two runs differ.

    What older versions did not write is no difference where only one of them says it.

    Args:
      then: the content of a run.json.
      now: of another.
      may_differ: keys that do not count, with all below them.
    """
    a, b = _flat(then), _flat(now)
    older = {key for key in {*a} ^ {*b} if key.startswith(NEWER)}
    return sorted(
        key
        for key in {*a, *b} - older
        if a.get(key) != b.get(key) and not key.startswith(may_differ)
    )


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a run.json by dotted keys, alternatives by their places."""
    config = run.get("config", {})
    indexed = dict(enumerate(config.get("alternatives", ())))
    return flatten_keys({**run, "config": {**config, "alternatives": indexed}})


def _check_same_study(
    folder: Path, then: Mapping[str, Any], now: Mapping[str, Any], may_differ: tuple[str, ...]
) -> None:
    """Raise a ValueError that names the keys in which two runs differ."""
    differing = differing_keys(then, now, may_differ)
    if not differing:
        return
    a, b = _flat(then), _flat(now)
    shown = "; ".join(
        f"{key}: {shorten_json(a.get(key), 60)} there, {shorten_json(b.get(key), 60)} now"
        for key in differing[:6]
    )
    if differing == ["fingerprints.tokenizer"]:
        shown += explain_tokenizer(then)
    models = [key.partition(".")[2] for key in differing if key.startswith("fingerprints.")]
    which = f" The model's {' and '.join(models)} changed." if models else ""
    raise ValueError(
        f"{folder} belongs to another study. {shown}.{which} Give another --workdir, or the same "
        "configuration"
    )


def explain_tokenizer(then: Mapping[str, Any]) -> str:
    """Say where another version of a package may be why a tokenizer's fingerprint differs.

    Args:
      then: the content of a study's run.json.

    Returns:
      A sentence behind a full stop; nothing where the versions are the same, or are not known.
    """
    changed = _changed_versions(then, {"versions": installed_versions()}, OF_TOKENIZERS)
    if not changed:
        return ""
    return (
        f". The study was made with {changed}, which may read the same files otherwise: where "
        "these were not changed, install that again to go on"
    )


def _tell_versions(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Log where a study goes on under other versions."""
    changed = _changed_versions(then, now, PACKAGES)
    if changed:
        logging.getLogger("jaxedit").warning(
            "%s was made with %s: numbers may differ in their last digits from here on",
            folder,
            changed,
        )


def _changed_versions(
    then: Mapping[str, Any], now: Mapping[str, Any], packages: tuple[str, ...]
) -> str:
    """Name the packages whose versions two run.json both have and differ in."""
    before, after = then.get("versions") or {}, now.get("versions") or {}
    return ", ".join(
        f"{name} {before[name]} (now {after[name]})"
        for name in packages
        if name in before and name in after and before[name] != after[name]
    )


def saved_templates(workdir: Path | None, method: str) -> tuple[str, ...] | None:
    """Read the context templates that a study's folder was begun with, if it was by this method.

    Raises:
      ValueError: where its run.json is damaged.
    """
    if workdir is None or not (workdir / FILE).is_file():
        return None
    run = read_run_file(workdir)
    templates = run.get("context_templates")
    if run.get("config", {}).get("editor", {}).get("method") != method:
        return None  # another study's, as `open_journal` will say
    return tuple(templates) if isinstance(templates, list) else None


def saved_alternatives(workdir: Path | None) -> list[dict[str, Any]]:
    """Read the alternatives that a study's folder was begun with; none where it is new.

    Raises:
      ValueError: where its run.json is damaged.
    """
    if workdir is None or not (workdir / FILE).is_file():
        return []
    return read_run_file(workdir).get("config", {}).get("alternatives", [])
