"""Editing methods: one file each, a pair of pure functions `init` and `edit` with published hyper-parameter names.

The file name is the method's name ("c-rome" is `c_rome.py`). A file offers `Hyper`, a frozen dataclass, and
`make(hyper) -> Editor`. Files whose name begins with an underscore are no methods.
"""

from jaxedit.editors._base import Editor
from jaxedit.editors._registry import defaults_of, hyper_types, make_editor, names

__all__ = ["Editor", "defaults_of", "hyper_types", "make_editor", "names"]
