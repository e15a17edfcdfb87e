"""Text from outside as people see it: no control characters, no markup, never an empty error.

What Markdown makes of escaped text is asked of markdown-it, which GitHub's rules are written into.
"""

import html
import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from jaxedit.messages import escape_controls, escape_markdown, first_line

ATTACKS = [
    "\x1b[31mred\x1b]0;title\x07",
    "a\x9b2Jb",
    "\u202egnp.exe\u2066x\u2069",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![i](http://x/y)",
    "`code` **bold** _em_ ~~gone~~ $x^2$ | bar",
    "&lt;b&gt; \\<b\\> \\\\[x](y)",
    "<https://example.org> &copy;",
]
MARKUP = st.text("<>&\\`*_[]()!|~$#ab \x1b\u202e\x9b\x7f\u2028é😀", max_size=30)


def rendered(text: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).renderInline(text)


@pytest.mark.parametrize("text", ATTACKS)
def test_markup_is_shown_as_it_is(text):
    found = rendered(escape_markdown(text))
    assert "<" not in found.replace("<br />", "")
    assert html.unescape(found) == escape_controls(text)
    in_table = MarkdownIt("gfm-like", {"linkify": False}).render(
        f"| a | b |\n|---|---|\n| {escape_markdown(text)} | c |"
    )
    assert in_table.count("<td>") == 2
    assert "<script" not in in_table
    assert "<img" not in in_table


@settings(max_examples=150, deadline=None, derandomize=True)
@given(MARKUP)
def test_any_text_is_shown_as_it_is(text):
    text = " ".join(text.split())
    assert html.unescape(rendered(f"x {escape_markdown(text)} x")) == f"x {escape_controls(text)} x"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=20))
def test_no_control_character_is_left(text):
    found = escape_controls(text)
    for letter in found:
        assert letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs")
        assert unicodedata.bidirectional(letter) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI")
        assert unicodedata.bidirectional(letter) not in ("RLI", "FSI", "PDI")
    # JSON's own text with its controls escaped is the same JSON.
    assert json.loads(escape_controls(json.dumps([text], ensure_ascii=False))) == [text]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AssertionError(), "AssertionError"),
        (RuntimeError(""), "RuntimeError"),
        (RuntimeError("\n \n"), "RuntimeError"),
        (ValueError("\nfirst\nsecond"), "first"),
        (OSError("one line"), "one line"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error, expected):
    assert first_line(error) == expected
