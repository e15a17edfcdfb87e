"""Old names in a configuration are errors that name the new ones, wherever they are given."""

import re

import pytest

from jaxedit.editors import RENAMED_HYPER
from jaxedit.study.config import default_config, plain_config, set_key
from jaxedit.study.renamed import RENAMED, new_name


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_names_its_new_name(old, new):
    config = default_config("rome")
    config[old] = 1
    with pytest.raises(ValueError, match=rf"'{old}' is called '{re.escape(new)}' now"):
        plain_config(config)


def test_a_renamed_hyper_parameter_names_its_new_name():
    with pytest.raises(ValueError, match="'keys' is called 'key_variant' now"):
        default_config("rome", keys="bare")
    with pytest.raises(ValueError, match="'ease_at_argmax' is called 'reduce_nll_when_correct'"):
        default_config("pmet", ease_at_argmax=True)


GROUPED = [(f"eval.{old}", new) for old, new in RENAMED.items() if new.startswith("eval.")]
HYPER = [(f"editor.{old}", f"editor.{new}") for old, new in RENAMED_HYPER.items()]


@pytest.mark.parametrize(
    ("old", "new"), [*RENAMED.items(), *HYPER, *(pair for pair in GROUPED if pair[0] != pair[1])]
)
def test_set_names_the_new_name(old, new):
    message = re.escape(f"key '{old}' is called '{new}' now")
    with pytest.raises(ValueError, match=message):
        set_key(default_config("rome"), f"{old}=1")


def test_names_of_today_are_not_old():
    config = default_config("pmet")
    assert not [name for name in config if new_name(name)]
    assert not [name for name in config.eval if new_name(f"eval.{name}")]
    assert not [name for name in config.editor if new_name(f"editor.{name}")]
    assert new_name("guard.prompts") is None
