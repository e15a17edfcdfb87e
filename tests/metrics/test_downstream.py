"""Downstream tasks: the same as lm-eval's own HFLM on the same checkpoint in torch."""

import json

import lm_eval
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import jaxedit
from jaxedit.metrics.downstream import evaluate_tasks
from jaxedit.metrics.harness import HarnessModel

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{query}}Answer:"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
"""
LAST_WORD = """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{' ' + continuation}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
"""
FREE = """
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, golden, shared):
    """The same golden checkpoint as ours and as lm-eval's model for torch."""
    directory = shared / "golden" / request.param
    hf = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    theirs = HFLM(
        hf,
        tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
        batch_size=4,
        device="cpu",
    )
    return HarnessModel(golden(request.param)), theirs


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def assert_alike(ours: list, theirs: list) -> None:
    for (logp, greedy), (their_logp, their_greedy) in zip(ours, theirs, strict=True):
        assert logp == pytest.approx(their_logp, abs=1e-4)
        assert greedy == their_greedy


def test_log_likelihoods(pair):
    """With trailing spaces, without a context, twice the same, and longer than the model's
    positions.
    """
    ours, theirs = pair
    long = "The little girl who lived in the forest went home. " * (ours.model.config.P // 4)
    assert len(ours.tok_encode(long)) > ours.model.config.P + 5
    requests = asked(
        "loglikelihood",
        ("The capital of Italy is", " Rome"),
        ("The capital of Italy is  ", "Rome and more"),
        ("", "Once upon a time"),
        ("Once upon a time", " there was a girl"),
        ("The capital of Italy is", " Rome"),
        (long, " and"),
        (long[:-1], " and that was it."),
    )
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert_alike(found, theirs.loglikelihood(requests, disable_tqdm=True))
    assert found[0] == found[4]
    rolling = asked(
        "loglikelihood_rolling", ("Once upon a time there was a girl.",), (long,), ("A",)
    )
    mine = ours.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert mine == pytest.approx(
        theirs.loglikelihood_rolling(rolling, disable_tqdm=True), rel=1e-5, abs=1e-4
    )


def test_generation(pair):
    """Up to a stop text, which the first tokens may lack; in lots of several lengths."""
    ours, theirs = pair
    for until, most in ((["."], 40), (["e", "a"], 40), ([], 20)):
        settings = {"until": until, "max_gen_toks": most, "do_sample": False}
        requests = asked(
            "generate_until",
            *((text, settings) for text in ("The capital", "Once upon a time there", "What is")),
        )
        assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)
    with pytest.raises(ValueError, match="only greedy generation is there"):
        ours.generate_until(asked("generate_until", ("A", {"do_sample": True, "temperature": 0.7})))
    with pytest.raises(ValueError, match=r"max_gen_toks=100000: the model has"):
        ours.generate_until(asked("generate_until", ("A", {"max_gen_toks": 100000})))


@pytest.fixture(scope="module")
def tasks(shared, tmp_path_factory):
    """A directory of task files over real data."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, source, text in (
        ("piqa_here", "piqa.jsonl", CHOICE),
        ("lambada_here", "lambada_openai.jsonl", LAST_WORD),
        ("piqa_free", "piqa.jsonl", FREE),
    ):
        content = TASK.format(name=name, path=shared / "data" / "eval" / source) + text
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")
    return folder


def test_tasks(pair, tasks):
    ours, theirs = pair
    names = ["piqa_here", "lambada_here", "piqa_free"]
    found = evaluate_tasks(ours.model, names, limit=12, task_path=tasks)
    wanted = lm_eval.simple_evaluate(
        theirs,
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks)),
        limit=12,
        bootstrap_iters=0,
    )["results"]
    assert found["piqa_here"]["acc"] == wanted["piqa_here"]["acc,none"]
    assert found["piqa_here"]["acc_norm"] == wanted["piqa_here"]["acc_norm,none"]
    assert found["lambada_here"]["acc"] == wanted["lambada_here"]["acc,none"]
    assert found["lambada_here"]["perplexity"] == pytest.approx(
        wanted["lambada_here"]["perplexity,none"], rel=1e-4
    )
    assert found["piqa_free"]["exact_match"] == wanted["piqa_free"]["exact_match,none"]
    assert {numbers["n"] for numbers in found.values()} == {12}
    assert "acc_stderr" in found["piqa_here"]
    json.dumps(found)


def test_what_cannot_be_evaluated(golden, tasks, tmp_path):
    model: jaxedit.Model = golden("gpt2")
    for settings, message in (
        (
            dict(tasks=["piqa_hree"], task_path=tasks),
            "lm-eval knows no task 'piqa_hree'; did you mean 'piqa_here'",
        ),
        (dict(tasks=[]), "at least one task"),
        (dict(tasks=["piqa"], limit=0), "limit=0"),
        (dict(tasks=["piqa"], task_path=tmp_path / "none"), "there is no directory"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_tasks(model, **settings)
    (tmp_path / "gone.yaml").write_text(
        TASK.format(name="gone", path=tmp_path / "gone.jsonl") + CHOICE, encoding="utf-8"
    )
    with pytest.raises(ValueError, match="the data of gone could not be had"):
        evaluate_tasks(model, ["gone"], task_path=tmp_path)
