"""Text that people read: the first line of an error, text from outside without control characters.

A fact, a path or what a model says may hold escape sequences, which a terminal obeys (colours, its
title, what was printed before), or marks that turn the direction of the text around them.
"""

import re

# Line separators and those that change the direction of what stands around them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)

_MARKS = re.compile(r"[\\`*_\[\]|~$]")


def escape_controls(text: str) -> str:
    """Write control characters as JSON and Python write them ("\\u001b"); lines and tabs stay."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape_markdown(text: str) -> str:
    """Write text so that Markdown shows it as it is: no tags, links, code, formulas or tables."""
    plain = escape_controls(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\g<0>", plain)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
