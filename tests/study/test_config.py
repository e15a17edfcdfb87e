"""Configurations: every key and its default, overriding, and what is said of a key that is not
there.
"""

import dataclasses
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import jaxedit
from jaxedit.editors import hyper_defaults, method_names
from jaxedit.study.config import (
    built_in_config,
    default_config,
    editor_from,
    plain_config,
    read_config,
)


def test_defaults():
    config = default_config("rome", layer=3)
    keys = config.to_dict()
    editor = keys.pop("editor")
    assert keys == {
        "model": "smollm2-135m",
        "dtype": None,
        "mesh": "",
        "facts": "builtin",
        "n_facts": 0,
        "texts": "builtin",
        "stats": "",
        "batch_size": 1,
        "perplexity_every": 1,
        "divergence_every": 0,
        "fluency_every": 0,
        "references": "",
        "retention_every": 0,
        "prompts": (),
        "single_batch_size": 16,
        "part": "",
        "journal_dense_every": 1,
        "screen": "",
        "mode": "sequential",
        "guard": {"max_ppl_ratio": 2.0, "action": "rollback", "max_relative_perturbation": 0.1},
    }
    assert editor.pop("method") == "rome"
    assert editor.pop("layer") == 3
    expected = {
        key: None if value is dataclasses.MISSING else value
        for key, value in hyper_defaults("rome").items()
    }
    assert editor == {key: value for key, value in expected.items() if key != "layer"}
    assert editor["v_lr"] == 0.5  # the published value
    assert plain_config(config) == config.to_dict()


@pytest.mark.parametrize("method", method_names())
def test_every_methods_hyper_parameters_are_keys(method):
    config = default_config(method)
    assert config.editor.method == method
    assert set(config.editor) == {"method", *hyper_defaults(method)}


def test_each_configuration_is_its_own():
    first, second = default_config("rome"), default_config("rome")
    first.guard.action = "stop"
    first.editor.v_lr = 0.1
    assert (second.guard.action, second.editor.v_lr) == ("rollback", 0.5)
    assert default_config("rome").guard.action == "rollback"


def test_overriding_keeps_types():
    config = default_config("rome", layer=5, v_lr=0.3)
    config.update(n_facts=4, guard=dict(action="keep"))
    config.editor.layer = 7
    config.editor.v_num_grad_steps = 3
    config.editor.context_templates = ["{}", "So. {}"]
    config.dtype = "bfloat16"
    kept = {"max_ppl_ratio": 2.0, "max_relative_perturbation": 0.1}  # the other keys stay
    assert config.guard.to_dict() == {**kept, "action": "record"}
    assert config.to_dict()["editor"]["context_templates"] == ("{}", "So. {}")
    hyper = editor_from(config.to_dict()["editor"]).hyper
    assert (hyper.layer, hyper.v_lr, hyper.v_num_grad_steps) == (7, 0.3, 3)
    with pytest.raises(TypeError, match="n_facts"):
        config.n_facts = "many"
    for key, value in (("layer", "five"), ("v_lr", "fast"), ("context_templates", 3)):
        with pytest.raises(TypeError):
            config.editor[key] = value


def test_the_editor_of_a_configuration():
    editor = editor_from(
        default_config("c-rome", layer=2, v_lr=0.25).to_dict()["editor"], context_templates=("{}",)
    )
    assert editor.name == "c-rome"
    assert editor.hyper.layer == 2
    assert editor.hyper.v_lr == 0.25
    assert editor.hyper.context_templates == ("{}",)
    assert editor.hyper.mom2_adjustment is None  # unset: the method's default


def test_unknown_methods_and_hyper_parameters():
    with pytest.raises(
        ValueError, match=r"unknown method 'romee'; did you mean 'rome'\? Methods: .*c-rome.*rome"
    ):
        default_config("romee")
    with pytest.raises(ValueError, match=r"unknown method 'xyz'\. Methods: "):
        default_config("xyz")
    with pytest.raises(
        ValueError,
        match=r"rome has no hyper-parameter 'vlr'; did you mean 'v_lr'\? It has: layer, fact_token",
    ):
        default_config("rome", vlr=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n_fact=3), r"the unknown key 'n_fact'; did you mean 'n_facts'\? Known: "),
        (
            dict(guard=dict(max_ratio=3.0)),
            r"the unknown key 'guard\.max_ratio'; did you mean 'max_ppl_ratio'\? Known: max_ppl_ratio",
        ),
        (dict(xyz=3), r"the unknown key 'xyz'\. Known: .*model"),
    ],
)
def test_a_key_that_is_not_there_is_named(change, message):
    config = default_config("rome", layer=2)
    config.update(change)
    with pytest.raises(ValueError, match=message):
        plain_config(config)


def test_a_missing_key_is_named():
    config = default_config("rome", layer=2)
    del config.mode
    del config.guard.action
    with pytest.raises(ValueError, match="the configuration has no mode; begin with"):
        plain_config(config)
    with pytest.raises(
        ValueError,
        match=r"the configuration has no batch_size, divergence_every, dtype, editor, .*, model, n_facts, ",
    ):
        plain_config(ConfigDict())


def test_the_built_in_configuration():
    path = built_in_config()
    assert path.name == "laptop.py"
    config = read_config(path)
    keys = plain_config(config)
    assert keys["model"] == "smollm2-135m"
    assert keys["editor"]["method"] in method_names()
    assert editor_from(keys["editor"]).name  # whole: an editor can be made of it


@pytest.mark.parametrize(
    "path",
    sorted(Path(jaxedit.__file__).parents[1].glob("configs/*.py")),
    ids=lambda path: path.stem,
)
def test_every_configuration_says_how_to_run_it(path):
    docstring = path.read_text(encoding="utf-8").split('"""')[1]
    for what in ("jaxedit ", "Hardware", "Time", "Expected"):
        assert what in docstring


def test_a_configuration_file_and_its_argument(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config(name='none'): return ConfigDict({'name': name})\n"
    )
    assert read_config(path).name == "none"
    assert read_config(str(path), "gpt2-xl").name == "gpt2-xl"
    for wrong in (tmp_path / "missing.py", tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            ValueError, match="is not a configuration: expected a Python file with get_config"
        ):
            read_config(wrong)
