"""Downstream tasks: the same as lm-eval's own HFLM on the same checkpoint in torch."""

import json
from pathlib import Path

import lm_eval
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from task_examples import CHOICE, TASK, write_tasks

from jaxedit.metrics.downstream import evaluate_tasks
from jaxedit.metrics.harness import HarnessModel


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, golden, shared):
    """Load the same golden checkpoint as ours and as lm-eval's model for torch."""
    directory = shared / "golden" / request.param
    hf = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = HFLM(hf, tokenizer=tokenizer, batch_size=4, device="cpu")
    return HarnessModel(golden(request.param)), theirs


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def assert_alike(ours: list, theirs: list) -> None:
    for (logp, greedy), (their_logp, their_greedy) in zip(ours, theirs, strict=True):
        assert logp == pytest.approx(their_logp, abs=1e-4)
        assert greedy == their_greedy


def long_text(model: HarnessModel) -> str:
    """Make a text that is longer than the model's positions."""
    text = "The little girl who lived in the forest went home. " * (model.model.config.P // 4)
    assert len(model.tok_encode(text)) > model.model.config.P + 5
    return text


def test_log_likelihoods_are_those_of_torch(pair):
    """Trailing spaces, no context, twice the same, and texts beyond the model's positions."""
    ours, theirs = pair
    long = long_text(ours)
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


def test_rolling_log_likelihoods_are_those_of_torch(pair):
    ours, theirs = pair
    texts = ("Once upon a time there was a girl.", long_text(ours), "A")
    requests = asked("loglikelihood_rolling", *((text,) for text in texts))
    found = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(("until", "most"), [(["."], 40), (["e", "a"], 40), ([], 20)])
def test_texts_are_generated_up_to_a_stop_text_as_by_torch(pair, until, most):
    ours, theirs = pair
    settings = {"until": until, "max_gen_toks": most, "do_sample": False}
    texts = ("The capital", "Once upon a time there", "What is")
    requests = asked("generate_until", *((text, settings) for text in texts))
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "only greedy generation is there"),
        ({"max_gen_toks": 100000}, r"max_gen_toks=100000: the model has"),
    ],
)
def test_generation_that_is_not_there_is_refused(golden, settings, message):
    model = HarnessModel(golden("gpt2"))
    with pytest.raises(ValueError, match=message):
        model.generate_until(asked("generate_until", ("A", settings)))


@pytest.fixture(scope="module")
def tasks(shared, tmp_path_factory):
    """Make a directory of task files over real data."""
    return write_tasks(tmp_path_factory.mktemp("tasks"), shared)


def test_tasks_have_the_results_that_lm_eval_gives_torch(pair, tasks):
    ours, theirs = pair
    names = ["piqa_here", "lambada_here", "piqa_free"]
    found = evaluate_tasks(ours.model, names, limit=12, task_path=tasks)
    manager = TaskManager(include_path=str(tasks))
    settings = dict(task_manager=manager, limit=12, bootstrap_iters=0)
    expected = lm_eval.simple_evaluate(theirs, tasks=names, **settings)["results"]
    for task, metric in (
        ("piqa_here", "acc"),
        ("piqa_here", "acc_norm"),
        ("lambada_here", "acc"),
        ("piqa_free", "exact_match"),
    ):
        assert found[task][metric] == expected[task][f"{metric},none"]
    perplexity = expected["lambada_here"]["perplexity,none"]
    assert found["lambada_here"]["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert {metrics["n"] for metrics in found.values()} == {12}
    assert "acc_stderr" in found["piqa_here"]
    json.dumps(found)


def test_a_task_that_is_misspelt_is_named_with_a_close_one(golden, tasks):
    message = "lm-eval knows no task 'piqa_hree'; did you mean 'piqa_here'"
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(golden("gpt2"), ["piqa_hree"], task_path=tasks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(tasks=[]), "at least one task"),
        (dict(tasks=["piqa"], limit=0), "limit=0"),
        (dict(tasks=["piqa"], task_path=Path("none")), "there is no directory"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(golden, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(golden("gpt2"), **settings)


def test_data_that_cannot_be_had_are_named(golden, tmp_path):
    content = TASK.format(name="gone", path=tmp_path / "gone.jsonl") + CHOICE
    (tmp_path / "gone.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="the data of gone could not be had"):
        evaluate_tasks(golden("gpt2"), ["gone"], task_path=tmp_path)
