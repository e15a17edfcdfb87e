"""What a study's edits are made by: its configuration's `editor` entry, and alternatives to it."""

from collections.abc import Mapping, Sequence
from typing import Any

LAYERS = ("layer", "layers")


def editor_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `editor` entry, with "alternatives" and "harm_texts" where there are some."""
    more = {name: config[name] for name in ("alternatives", "harm_texts") if config.get(name)}
    return {**config["editor"], **more}


def name_methods(entry: Mapping[str, Any]) -> str:
    """Name the methods of an `editor_entry`, each once, e.g. "alphaedit, memit or rome"."""
    entries = (entry, *entry.get("alternatives", ()))
    *others, last = dict.fromkeys(each["method"] for each in entries)
    return f"{', '.join(others)} or {last}" if others else last


def name_entries(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name entries by method, layers, and what others of the same method have otherwise.

    E.g. "rome (layer 3, clamp_norm_factor 2.0)" or "memit (layers 4, 5)".
    """
    names = []
    for entry in entries:
        same = [other for other in entries if other["method"] == entry["method"]]
        shown = [
            _show(name, value)
            for name, value in entry.items()
            if name != "method"
            and (name in LAYERS or any(other.get(name) != value for other in same))
        ]
        names.append(f"{entry['method']} ({', '.join(shown)})")
    return names


def _show(name: str, value: Any) -> str:
    values = value if isinstance(value, list | tuple) else [value]
    name = "layer" if name in LAYERS and len(values) == 1 else name
    return f"{name} {', '.join(map(str, values))}"
