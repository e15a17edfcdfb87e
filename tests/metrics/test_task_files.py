"""lm-eval's own files, with examples and chat templates: as lm-eval writes them for torch."""

import json
import shutil
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
import transformers
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from task_examples import write_tasks

import jaxedit
from jaxedit.edits.edit import Dense, make_edit
from jaxedit.metrics.downstream import PromptSettings, evaluate_tasks
from jaxedit.metrics.harness import HarnessModel
from jaxedit.metrics.task_files import write_files
from jaxedit.models.model import with_bos

NAMES = ["piqa_here", "lambada_here", "piqa_free"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system message') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SAME = ("doc_id", "doc", "target", "arguments", "doc_hash", "prompt_hash", "target_hash", "filter")
OWN = {"fingerprint", "n_edits"}  # what our files say beside what those of torch do
DIFFER = {"config", "model_name", "model_name_sanitized", "start_time", "end_time", "date"} | {
    "total_evaluation_time_seconds",
    "tokenizer_pad_token",
}


@pytest.fixture(scope="module")
def checkpoint(shared, tmp_path_factory):
    """Make a checkpoint with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(shared / "golden" / "llama", folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": TEMPLATE}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def theirs(checkpoint):
    """Load lm-eval's model for torch."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    return HFLM(hf, tokenizer=tokenizer, batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def ours(checkpoint):
    return jaxedit.load(str(checkpoint))


@pytest.fixture(scope="module")
def tasks(shared, tmp_path_factory):
    """Make a directory of task files over real data; examples come from the same data."""
    folder = write_tasks(tmp_path_factory.mktemp("tasks"), shared)
    for path in folder.iterdir():
        with path.open("a", encoding="utf-8") as file:
            file.write("fewshot_split: test\n")
    return folder


def write_theirs(model: HFLM, tasks: Path, folder: Path, prompts: PromptSettings) -> None:
    """Have lm-eval evaluate and write what its own command does."""
    tracker = EvaluationTracker(output_path=str(folder))
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    found = lm_eval.simple_evaluate(
        model,
        model_args="pretrained=torch",
        tasks=NAMES,
        task_manager=TaskManager(include_path=str(tasks)),
        limit=6,
        num_fewshot=prompts.num_fewshot,
        apply_chat_template=prompts.apply_chat_template,
        bootstrap_iters=1000,
        evaluation_tracker=tracker,
        log_samples=True,
        **dict.fromkeys(seeds, prompts.seed),
    )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for name in found["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])


def read_files(folder: Path) -> tuple[dict, dict[str, list[dict]]]:
    """Read the results, and the samples by task, that lie in one folder below a folder."""
    (below,) = folder.iterdir()
    (results,) = below.glob("results_*.json")
    samples = {}
    for path in below.glob("samples_*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        samples[path.name.split("_20")[0].removeprefix("samples_")] = list(map(json.loads, lines))
    return json.loads(results.read_text(encoding="utf-8")), samples


def assert_close(ours, theirs) -> None:
    """Compare numbers at any depth to 1e-4; what is no number is the same."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_close(ours[key], theirs[key])
    elif isinstance(theirs, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)
    else:
        try:
            expected = float(theirs)
        except (TypeError, ValueError):
            assert ours == theirs
        else:
            assert float(ours) == pytest.approx(expected, rel=1e-4, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    "prompts",
    [
        PromptSettings(num_fewshot=2, seed=3),
        PromptSettings(num_fewshot=1, apply_chat_template=True, seed=7),
    ],
    ids=["few-shot", "chat"],
)
def test_files_are_those_that_lm_eval_writes_for_torch(prompts, ours, theirs, tasks, tmp_path):
    """The same keys, settings and prompts, and the same numbers to 1e-4."""
    settings = dict(limit=6, task_path=tasks, prompts=prompts)
    printed = evaluate_tasks(
        ours, NAMES, **settings, output_path=tmp_path / "ours", log_samples=True
    )
    write_theirs(theirs, tasks, tmp_path / "theirs", prompts)
    results, samples = read_files(tmp_path / "ours")
    expected, expected_samples = read_files(tmp_path / "theirs")

    # Results.
    assert results.keys() == expected.keys()
    assert results["config"].keys() == expected["config"].keys() | OWN
    for key in expected.keys() - DIFFER:
        assert_close(results[key], expected[key])
    for key in ("model_num_parameters", "limit", "fewshot_seed", "random_seed", "bootstrap_iters"):
        assert results["config"][key] == expected["config"][key], key
    assert results["config"]["n_edits"] == 0
    assert printed["piqa_here"]["acc"] == results["results"]["piqa_here"]["acc,none"]

    # Samples: prompts and answers.
    assert samples.keys() == expected_samples.keys() == set(NAMES)
    for name in NAMES:
        for one, other in zip(samples[name], expected_samples[name], strict=True):
            assert one.keys() == other.keys()
            assert {key: one[key] for key in SAME} == {key: other[key] for key in SAME}
            assert_close(one, other)
    prompt = samples["piqa_here"][0]["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("<|endoftext|>user: ") == prompts.apply_chat_template
    assert prompt.count("Answer:") == 1 + (prompts.num_fewshot or 0)


def test_a_prompt_with_its_begin_of_text_gets_no_other(ours, theirs):
    """Where the model's settings put one in front of any other text."""
    model = HarnessModel(with_bos(ours))
    prompt = model.apply_chat_template([{"role": "user", "content": "Who is it?"}])
    assert model.tok_encode(prompt) == theirs.tok_encode(prompt)
    assert model.tok_encode(prompt)[0] == model.prefix_token_id
    assert model.tok_encode("Who is it?") == [
        model.prefix_token_id,
        *theirs.tok_encode("Who is it?"),
    ]


@pytest.mark.parametrize("goes_on", [False, True])
def test_chats_are_rendered_as_by_torch(ours, theirs, goes_on):
    """The template refuses system messages, so they are left out; an answer may go on."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is Rome?"},
        {"role": "assistant", "content": "In"},
    ]
    found = HarnessModel(ours).apply_chat_template(messages, add_generation_prompt=not goes_on)
    assert found == theirs.apply_chat_template(messages, add_generation_prompt=not goes_on)
    assert "brief" not in found
    assert found.endswith("In" if goes_on else "assistant: ")
    assert HarnessModel(ours).chat_template(True) == theirs.chat_template(True) == TEMPLATE


def test_an_edited_model_says_so(ours):
    shape = ours.config.F, ours.config.D
    edit = make_edit(ours, [Dense("mlp/w_down", 3, np.ones(shape, np.float32))])
    info = HarnessModel(jaxedit.apply(ours, edit)).get_model_info()
    assert (info["n_edits"], info["fingerprint"]) == (1, ours.fingerprint)


# What cannot be done is said before anything is evaluated


@pytest.fixture
def refusing(monkeypatch):
    """Have an evaluation that begins fail the test."""

    def evaluate(*arguments, **settings):
        pytest.fail("the evaluation began")

    monkeypatch.setattr(lm_eval.evaluator, "simple_evaluate", evaluate)


def test_an_output_path_that_cannot_be_written_is_refused(ours, tasks, tmp_path, refusing):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "a.json"):
        with pytest.raises(ValueError, match=r"output_path=.*file.*: no files can be written"):
            evaluate_tasks(ours, ["piqa_here"], task_path=tasks, output_path=path)


def test_settings_that_do_not_go_together_are_refused(ours, golden, tasks, refusing):
    with pytest.raises(ValueError, match="give an output_path"):
        evaluate_tasks(ours, ["piqa_here"], task_path=tasks, log_samples=True)
    with pytest.raises(ValueError, match="num_fewshot=-1"):
        evaluate_tasks(ours, ["piqa_here"], task_path=tasks, prompts=PromptSettings(-1))
    chat = PromptSettings(apply_chat_template=True)
    with pytest.raises(ValueError, match=r"the tokenizer of .*gpt2 has no chat template"):
        evaluate_tasks(golden("gpt2"), ["piqa_here"], task_path=tasks, prompts=chat)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("save_results_samples", "1 of 2 files, 0 of 1 samples"),
        ("save_results_aggregated", "0 of 2 files"),
    ],
)
def test_files_that_are_not_whole_are_an_error(broken, message, tmp_path, monkeypatch):
    """The tracker itself says it in a log only."""
    tracker = EvaluationTracker(output_path=str(tmp_path))
    monkeypatch.setattr(tracker, broken, lambda **what: None)
    sample = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash", "target"), "")
    sample |= dict(arguments=[], resps=[], filtered_resps=[])
    with pytest.raises(OSError, match=message):
        write_files(tracker, {"results": {}, "samples": {"piqa": [sample]}}, tmp_path)
