"""Editing methods, one file each: a pair of pure functions `init` and `edit`.

The file name is the method's name ("c-rome" is `c_rome.py`). A file offers `Hyper`, a frozen
dataclass with published hyper-parameter names and an `anchor` (`jaxedit.solving.hyper`), and
`make(hyper) -> Editor`. Files whose name begins with an underscore are no methods.
"""

from jaxedit.editors._base import Editor
from jaxedit.editors._published import ENTRIES, find_published, known_name, published_hyper
from jaxedit.editors._registry import (
    RENAMED_HYPER,
    hyper_defaults,
    hyper_types,
    layer_field,
    make_editor,
    method_names,
    with_own_layer_name,
    with_text_paths,
)

__all__ = [
    "ENTRIES",
    "RENAMED_HYPER",
    "Editor",
    "find_published",
    "hyper_defaults",
    "hyper_types",
    "known_name",
    "layer_field",
    "make_editor",
    "method_names",
    "published_hyper",
    "with_own_layer_name",
    "with_text_paths",
]
