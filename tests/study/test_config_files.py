"""--config files that fail, paths with colons and ~, values of a wrong kind: one line each."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxedit.cli._parsers import PathParser
from jaxedit.files import local_path
from jaxedit.study.config import default_config, plain_config, read_config, split_argument
from jaxedit.study.guard import Guard
from jaxedit.study.validation import PATH_KEYS, check_config, with_local_paths

START = "from jaxedit.study.config import default_config\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("def get_config():\n    return None\n", None, r"get_config\(\) of .* returned None"),
        ("def get_config():\n    return 5\n", None, r"get_config\(\) of .* returned 5: expected"),
        ("def get_config():\n    return {}['x']\n", 2, "KeyError: 'x'$"),
        ("def get_config():\n    raise RuntimeError\n", 2, "RuntimeError$"),
        ("def get_config():\n    raise SystemExit(3)\n", 2, "SystemExit: 3$"),
        ("def get_config():\n    raise ValueError('a\\nb')\n", 2, "a b$"),
        (
            "x = 1\nimport nothing_there\n",
            2,
            "ModuleNotFoundError: No module named",
        ),
        ("x = 1\nx +=\n", 2, "SyntaxError: invalid syntax$"),
        (f"{START}x = default_config('romee')\n", 2, "unknown method 'romee'"),
        (
            f"{START}def get_config():\n    c = default_config()\n    c.n_facts = 'a'\n",
            4,
            "TypeErr",
        ),
        (f"{START}def get_config():\n    c = default_config()\n    c.n_fact = 3\n", 4, "n_fact"),
        ("x = 1\n", None, r"has no get_config\(\): expected a function"),
        ("get_config = 3\n", None, r"has no get_config\(\)"),
        ("def get_config():\n    get_config()\nget_config()\n", 2, "RecursionError"),
        ("def get_config(which):\n    return which\n", None, "TypeError: .*missing 1 required"),
    ],
)
def test_a_file_that_fails_says_where(tmp_path, text, line, says):
    path = tmp_path / "mine.py"
    body = text.replace("c = default_config()", "c = default_config().lock()")
    path.write_text(body, encoding="utf-8")
    with pytest.raises(ValueError, match=says) as caught:
        read_config(path)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    if line is not None:
        assert said.startswith(f"{path}, line {line}: ")


def test_a_path_may_hold_colons(tmp_path, monkeypatch):
    folder = tmp_path / "a:b"
    folder.mkdir()
    path = folder / "c:d.py"
    path.write_text("def get_config(which='none'):\n    return which\n", encoding="utf-8")
    assert split_argument(str(path)) == (path, None)
    assert split_argument(f"{path}:hard") == (path, "hard")
    assert split_argument(f"{path}:hard:er") == (path, "hard:er")
    found, argument = split_argument("paper:gpt2-xl")
    assert (found.name, argument) == ("paper.py", "gpt2-xl")
    with pytest.raises(ValueError, match="nowhere is not a configuration"):
        split_argument("nowhere:a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert split_argument("~/a:b/c:d.py:x") == (path, "x")


def test_a_tilde_is_the_home_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/x") == local_path(Path("~/x")) == tmp_path / "x"
    assert local_path("~no-such-user/x") == Path("~no-such-user/x")
    assert PathParser().parse("~/x") == str(tmp_path / "x")
    assert PathParser().parse("a/~") == "a/~"
    config = default_config("memit")
    config.update(facts="~/f.json", texts="~/t.json", stats="~/s", model="~/kept-for-load")
    config.harm_texts = "~/h.txt"
    config.alternatives = (dict(method="rome", harm_texts="~/other.txt"),)
    config.start.update(run="~/r", edit="")
    config.eval.reference_texts = "~/ref"
    config.editor.target_cache = "~/cache"
    config.editor.harm_texts = "~/harm.txt"
    found = with_local_paths(plain_config(config))
    home = str(tmp_path)
    for key in set(PATH_KEYS) - {"start.edit", "editor.network"}:
        value = found
        for name in key.split("."):
            value = value[name]
        assert value.startswith(home), key
    assert found["alternatives"][0]["harm_texts"] == str(tmp_path / "other.txt")
    assert found["start"]["edit"] == ""
    mend = with_local_paths(plain_config(default_config("mend", network="~/n")))
    assert mend["editor"]["network"] == str(tmp_path / "n")
    assert found["model"] == "~/kept-for-load"


WRONG = [None, 1.5, "text", True, b"x", [1], {}, float("nan")]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from([*(k for k in default_config().to_dict() if k != "editor")]), st.data())
def test_a_value_of_another_kind_names_its_key(key, data):
    values = plain_config(default_config())
    name = key
    if isinstance(values[key], dict):
        inner = data.draw(st.sampled_from(sorted(values[key])))
        name = f"{key}.{inner}"
        values = values | {key: values[key] | {inner: data.draw(st.sampled_from(WRONG))}}
    else:
        values = values | {key: data.draw(st.sampled_from(WRONG))}
    said = name
    try:
        check_config(values)
        Guard(**values["guard"])
    except ValueError as error:
        said = str(error)
    assert name in said


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.5, -1.0])
def test_limits_of_the_guard_are_finite(value):
    with pytest.raises(ValueError, match=r"guard\.max_ppl_ratio"):
        Guard(max_ppl_ratio=value)
    if value != 0.5:
        with pytest.raises(ValueError, match=r"guard\.max_relative_perturbation"):
            Guard(max_relative_perturbation=value)
