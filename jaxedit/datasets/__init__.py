"""Requests and texts from files: one file here for each form of record.

The file name is the form's name ("counterfact-flat" is `counterfact_flat.py`). A file offers

    KEYS        the keys that tell the form
    FIELDS      what a record holds: a type, [one] for a list, or {key: ...} for an object; a key
                that ends in "?" may be absent or null; keys not named are ignored unless the form
                says otherwise
    request     (record) -> its request, or None where the record cannot be used; or instead
    requests    (records) -> a list of these, where a record is not a request by itself
"""

from jaxedit.datasets._public import PUBLIC
from jaxedit.datasets._read import (
    BUILTIN,
    Requests,
    form_module,
    form_names,
    read_corpus,
    read_requests,
    read_texts,
)
from jaxedit.datasets._sources import HUB_PREFIX

__all__ = [
    "BUILTIN",
    "HUB_PREFIX",
    "PUBLIC",
    "Requests",
    "form_module",
    "form_names",
    "read_corpus",
    "read_requests",
    "read_texts",
]
