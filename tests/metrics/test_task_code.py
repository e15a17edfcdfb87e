"""Task files are data: what would run code is refused, and lm-eval's own tasks that do."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from lm_eval import tasks, utils

from jaxedit.metrics.downstream import evaluate_tasks
from jaxedit.metrics.task_code import check_unsafe, sandboxed_templates

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {kwargs}
test_split: test
output_type: generate_until
doc_to_text: {text}
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["x"], max_gen_toks: 2, do_sample: false}}
metric_list: [{{metric: {metric}}}]
{more}
"""


@pytest.fixture
def folder(tmp_path):
    """Make a folder with data, and a module that leaves a trace where it is run."""
    (tmp_path / "data.jsonl").write_text(json.dumps({"q": "Who?", "a": "x"}))
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w').close()\ndef f(doc):\n    return 'a'\n"
    (tmp_path / "utils.py").write_text(code)
    return tmp_path


def write_task(folder, text='"{{q}}"', metric="exact_match", kwargs="", more=""):
    data = f"data_files: {{test: {folder / 'data.jsonl'}}}"
    given = f"{{{data}, {kwargs}}}" if kwargs else f"{{{data}}}"
    content = TASK.format(text=text, metric=metric, kwargs=given, more=more)
    (folder / "mine.yaml").write_text(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(text="!function utils.f"), r"mine.yaml has !function utils.f: no code is run"),
        (dict(text="!function os.getcwd"), r"has !function os.getcwd"),
        (dict(metric="!function utils.f"), r"has !function utils.f"),
        (dict(metric="./utils"), r"has metric: ./utils"),
        (dict(metric="exact_match, hf_evaluate: true"), r"has hf_evaluate: True"),
        (dict(kwargs="trust_remote_code: true"), r"has trust_remote_code: True"),
        (dict(more="unsafe_code: true"), r"has unsafe_code: True"),
        (dict(more="class: !function utils.f"), r"has !function utils.f"),
        (dict(more="filter_list: [{name: f, filter: [{function: !function utils.f}]}]"), "!func"),
        (dict(more="x: !!python/name:os.system"), r"mine.yaml cannot be read as plain YAML"),
        (dict(more="include: more.yml"), r"more.yml has !function utils.f"),
        # It would switch off what an included task says of itself.
        (dict(more="unsafe_code: false"), r"mine.yaml has unsafe_code: False"),
        (dict(more="metric: [acc]"), r"mine.yaml has metric: \['acc'\]"),
    ],
    ids=str,
)
def test_a_task_file_that_asks_for_code_is_refused(golden, folder, changes, message):
    (folder / "more.yml").write_text("process_docs: !function utils.f\n")
    write_task(folder, **changes)
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(golden("gpt2"), ["mine"], task_path=folder)
    assert not (folder / "trace").exists()


def test_a_task_file_without_code_is_evaluated(golden, folder):
    write_task(folder, kwargs="trust_remote_code: false")
    evaluated = evaluate_tasks(golden("gpt2"), ["mine"], task_path=folder)
    assert evaluated["mine"]["exact_match"] == 0
    assert not (folder / "trace").exists()


def test_what_lm_eval_was_installed_with_may_be_included_but_not_a_copy_of_it(golden, folder):
    """HellaSwag takes its documents from a function, which is what makes `query` of them."""
    question = {"activity_label": "A", "ctx_a": "The dog", "ctx_b": "barks", "label": "0"}
    question |= {"endings": ["at the cat.", "at the cat."]}
    (folder / "data.jsonl").write_text(json.dumps(question))
    path = Path(next(iter(tasks.__path__))) / "hellaswag" / "hellaswag.yaml"

    def write(included):
        data = f"{{data_files: {{validation: {folder / 'data.jsonl'}}}}}"
        more = f"dataset_path: json\ndataset_kwargs: {data}\ntraining_split: null"
        (folder / "mine.yaml").write_text(f"include: {included}\ntask: mine\n{more}\n")

    write(path)
    evaluated = evaluate_tasks(golden("gpt2"), ["mine"], task_path=folder)
    assert evaluated["mine"]["acc"] == 1  # of two equal endings the first
    write(shutil.copy(path, folder / "copy.yml"))
    with pytest.raises(ValueError, match=r"copy\.yml has !function utils\.process_docs"):
        evaluate_tasks(golden("gpt2"), ["mine"], task_path=folder)


@pytest.mark.parametrize("name", ["unsafe", "group", "tag", "nested"])
def test_tasks_that_run_what_a_model_writes_are_refused(name):
    def entry(config, tags=()):
        return SimpleNamespace(cfg=config, tags=set(tags))

    index = {
        "safe": entry({"task": "safe", "tag": "tag"}, ["tag"]),
        "unsafe": entry({"task": "unsafe", "unsafe_code": True}),
        "group": entry({"group": "group", "task": ["safe", {"task": "unsafe", "num_fewshot": 1}]}),
        "nested": entry({"group": "nested", "task": ["group"]}),
        "tag": entry(None, ["safe", "unsafe"]),
    }
    check_unsafe(index, ["safe", "unknown"])
    with pytest.raises(ValueError, match="the task unsafe runs what the model writes"):
        check_unsafe(index, [name])


def test_templates_cannot_reach_pythons_own_attributes():
    attack = "{{ ''['__cla' ~ 'ss__'].__mro__ }}"
    assert "object" in utils.apply_template(attack, {})
    with sandboxed_templates():
        with pytest.raises(jinja2.sandbox.SecurityError):
            utils.apply_template(attack, {})
        text = utils.apply_template("{{ q | regex_replace('a', 'b') }}\n", {"q": "aa"})
    assert text == "bb\n"
    assert "object" in utils.apply_template(attack, {})
