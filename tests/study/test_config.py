"""Configurations: every key and its default, overriding, and what is said of a key that is not
there.
"""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

import jaxedit
from jaxedit.editors import hyper_defaults, method_names
from jaxedit.study.config import (
    default_config,
    editor_from,
    plain_config,
    read_config,
    set_key,
    with_published_layers,
)
from jaxedit.study.config_file import config_names, find_config


def test_defaults():
    config = default_config("rome", layer=3)
    keys = config.to_dict()
    editor = keys.pop("editor")
    assert keys == {
        "model": "smollm2-135m",
        "start": {"run": "", "run_steps": (), "after_step": None, "edit": ""},
        "dtype": None,
        "mesh": "",
        "facts": "builtin",
        "n_facts": 0,
        "texts": "builtin",
        "stats": "",
        "facts_per_edit": 1,
        "single_batch_size": 16,
        "shard": "",
        "journal_dense_every": 1,
        "alternatives": (),
        "harm_texts": "",
        "screening": "",
        "mode": "sequential",
        "eval": {
            "bos": None,
            "perplexity_every": 1,
            "kl_every": 0,
            "fluency_every": 0,
            "retention_every": 0,
            "prompts": (),
            "reference_texts": "",
            "generated_every": 0,
            "generated_context": "bare",
            "judge": "",
            "judge_model": "",
            "prediction_draws": 0,
        },
        "guard": {
            "max_ppl_ratio": 2.0,
            "action": "rollback",
            "max_relative_perturbation": 0.1,
            "statistic": "mean",
        },
    }
    assert editor.pop("method") == "rome"
    assert editor.pop("layer") == 3
    expected = hyper_defaults("rome")
    assert editor == {key: value for key, value in expected.items() if key != "layer"}
    assert editor["v_lr"] == 0.5  # the published value
    assert plain_config(config) == config.to_dict()


def test_no_configuration_changes_another():
    config = default_config()
    config.dtype, config.eval.bos, config.start.after_step = "float32", True, 3
    other = default_config()
    assert (other.dtype, other.eval.bos, other.start.after_step) == (None, None, None)


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
    # The other keys stay.
    kept = {"max_ppl_ratio": 2.0, "max_relative_perturbation": 0.1, "statistic": "mean"}
    assert config.guard.to_dict() == {**kept, "action": "keep"}
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
        match=r"rome has no hyper-parameter 'vlr'; did you mean 'v_lr'\? It has: layer, .*v_num",
    ):
        default_config("rome", vlr=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n_fact=3), r"the unknown key 'n_fact'; did you mean 'n_facts'\? Known: "),
        (
            dict(guard=dict(max_ratio=3.0)),
            r"the unknown key 'guard\.max_ratio'; did you mean 'max_ppl_ratio'\? Known: ",
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
        match=r"the configuration has no alternatives, dtype, editor, eval, .*, texts; begin",
    ):
        plain_config(ConfigDict())


def test_the_built_in_configuration():
    path = find_config("laptop")
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
        "from ml_collections import ConfigDict\n"
        "def get_config(name='none'): return ConfigDict({'name': name})\n"
    )
    assert read_config(path).name == "none"
    assert read_config(str(path), "gpt2-xl").name == "gpt2-xl"
    for wrong in (tmp_path / "missing.py", tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            ValueError, match="is not a configuration: expected a Python file with get_config"
        ):
            read_config(wrong)


def test_a_configuration_of_the_package_is_found_by_its_name():
    assert {"laptop", "published", "paper", "single_edits"} <= set(config_names())
    config = read_config("published", "memit/llama-3-8b")
    assert config.model == "meta-llama/Meta-Llama-3-8B-Instruct"
    with pytest.raises(
        ValueError, match=r"lap is not a configuration: .* or one of .*batch, .*laptop"
    ):
        find_config("lap")


SETTINGS = {
    "n_facts=3": ("n_facts", 3),
    "texts=a,b.json": ("texts", "a,b.json"),
    "dtype=bfloat16": ("dtype", "bfloat16"),
    "editor.v_lr=1": ("editor.v_lr", 1.0),
    "editor.layer=3": ("editor.layer", 3),
    "editor.keep_unedited_norm=true": ("editor.keep_unedited_norm", True),
    'editor.context_templates=["{}", "So. {}"]': ("editor.context_templates", ("{}", "So. {}")),
    "eval.kl_every=5": ("eval.kl_every", 5),
    'eval.prompts=["Once"]': ("eval.prompts", ("Once",)),
    "guard.max_relative_perturbation=null": ("guard.max_relative_perturbation", None),
}


@pytest.mark.parametrize(("text", "expected"), SETTINGS.items())
def test_set_sets_one_key_with_its_type(text, expected):
    config = default_config("rome")
    set_key(config, text)
    path, value = expected
    found = config
    for name in path.split("."):
        found = found[name]
    assert found == value
    assert type(found) is type(value)
    others = default_config("rome").to_dict()
    entry, _, name = path.rpartition(".")
    (others[entry] if entry else others)[name] = value
    assert config.to_dict() == others


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("editor.vlr=1", r"expected KEY=VALUE with a key there is; did you mean 'editor\.v_lr'\?"),
        ("nothing", r"--set=nothing: expected KEY=VALUE with a key there is"),
        ("n_facts=many", r"--set=n_facts=many: expected n_facts= with a whole number"),
        ("n_facts=1.5", r"expected n_facts= with a whole number"),
        ("editor.keep_unedited_norm=3", r"expected editor\.keep_unedited_norm= with true or false"),
        ("editor=rome", r"expected editor= with its own keys, e\.g\. editor\.KEY=VALUE"),
        ("editor.method.x=rome", r"expected KEY=VALUE with a key there is"),
        ("batch_size=3", r"the configuration's key 'batch_size' is called 'facts_per_edit' now"),
        ("divergence_every=3", r"key 'divergence_every' is called 'eval\.kl_every' now"),
    ],
)
def test_set_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        set_key(default_config("rome"), text)


def test_layers_are_those_published_for_the_model(golden):
    """Of a model that nobody published layers for they must be given."""
    model = golden("gpt2")
    with pytest.raises(ValueError, match=r"no layer is published for rome .* give --layer"):
        with_published_layers(default_config("rome").to_dict()["editor"], model)
    given = default_config("memit", layers=(2, 3)).to_dict()["editor"]
    assert with_published_layers(given, model) == given
