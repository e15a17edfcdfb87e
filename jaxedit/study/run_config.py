"""The configuration of a study that was run, for another one with the same requests."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxedit.datasets import read_requests
from jaxedit.editors import layer_field
from jaxedit.study.config import default_config, editor_config, set_key
from jaxedit.study.digests import digest_requests
from jaxedit.study.journal import Journal

METHOD_KEY = "editor.method="


def read_run_config(journal: Journal) -> ConfigDict:
    """Return a study's configuration as its run.json has it."""
    values = journal.run["config"]
    config = default_config(values["editor"]["method"])
    _fill(config, values)
    return config


def replay_config(
    journal: Journal, model: str | None = None, overrides: Sequence[str] = ()
) -> ConfigDict:
    """Return the configuration of a new study with the requests of one that was run.

    On another model the layers are those published for it. Another method begins with its own
    defaults and the layers published for the model.

    Args:
      journal: of the study that was run.
      model: another base; None: the study's.
      overrides: "KEY=VALUE" each; `editor.method=NAME` is another method, whose keys the others may
        set.

    Raises:
      ValueError: on a key that is not there, or where the facts are not the study's any more.
    """
    config = read_run_config(journal)
    if model is not None and model != config.model:
        config.model = model
        config.update(eval=dict(bos=None))  # as the other model's tokenizer says
        editor: Any = config.editor
        layers = layer_field(editor.method)
        editor[layers] = editor_config(editor.method)[layers]
        others: Any = config.alternatives
        config.alternatives = tuple(
            {name: value for name, value in each.items() if name not in ("layer", "layers")}
            for each in others
        )
    for text in overrides:
        if text.startswith(METHOD_KEY):
            config.editor = editor_config(text.removeprefix(METHOD_KEY))
            config.update(alternatives=(), harm_texts="")
    for text in overrides:
        if not text.startswith(METHOD_KEY):
            set_key(config, text)

    # The same requests, in whatever file they are now.
    requests = read_requests(str(config.facts)).requests
    if digest_requests(requests) != journal.run["facts_sha256"]:
        raise ValueError(
            f"{config.facts} does not hold the facts of {journal.folder} any more; give the file "
            "that does by --set=facts=FILE"
        )
    return config


def set_keys(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Set keys of a configuration from "KEY=VALUE" each.

    Raises:
      ValueError: as `set_key`, and on another method, which has other hyper-parameters.
    """
    for text in overrides:
        if text.startswith(METHOD_KEY):
            _check_method(config, text)
    for text in overrides:
        set_key(config, text)


def _check_method(config: Any, text: str) -> None:
    """Raise a ValueError where "editor.method=NAME" is not the configuration's own method."""
    name = text.removeprefix(METHOD_KEY)
    own = config.get("editor", {}).get("method", name)  # the one of MEND's training has no editor
    if name != own:
        raise ValueError(
            f"--set={text}: the configuration is one of {own}, whose hyper-parameters are others; "
            f"begin with one of {name}, e.g. --config=published:{name}/MODEL "
            "(`jaxedit configs --name=published` lists them)"
        )


def _fill(config: Any, values: Mapping[str, Any]) -> None:
    """Set a configuration's keys from JSON, where lists were tuples and "inf" a number."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _fill(config[key], value)
        elif config.get_type(key) is float and value is not None:
            config[key] = float(value)
        elif value is not None:
            config[key] = _to_tuples(value)


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value
