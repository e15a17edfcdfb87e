"""`jaxedit check`: its page, its JSON, its exit status."""

import json

import numpy as np
import pytest
from command_examples import refusal
from reference.strict_json import read_strict_json
from safetensors.numpy import save_file

import jaxedit
from jaxedit.edits.predicted_change import predict_edit
from jaxedit.metrics.perplexity import prepare

CHECK = ("--model=tiny", "--texts=texts.json", "--facts=facts.json")
DOWN, QKV = "transformer.h.{l}.mlp.c_proj", "transformer.h.{l}.attn.c_attn"


@pytest.fixture(scope="module")
def adapters(folder, tiny):
    """Write adapters of three sizes, the second one of attention too."""
    rng = np.random.default_rng(0)
    D, F = tiny.config.D, tiny.config.F
    for name, size, modules in (
        ("small", 0.02, {DOWN: (F, D)}),
        ("both", 0.02, {DOWN: (F, D), QKV: (D, 3 * D)}),
        ("large", 0.02, {DOWN: (F, D)}),
    ):
        arrays = {}
        for layer in (1, 2, 4):
            for module, (n_in, n_out) in modules.items():
                key = f"base_model.model.{module.format(l=layer)}"
                for which, shape in (("A", (2, n_in)), ("B", (n_out, 2))):
                    draw = size * rng.standard_normal(shape)
                    arrays[f"{key}.lora_{which}.weight"] = draw.astype(np.float32)
        if name == "large":  # it makes the model sure of one token, whatever the text
            key = f"base_model.model.{DOWN.format(l=4)}.lora_"
            arrays[f"{key}A.weight"][:] = 1
            arrays[f"{key}B.weight"][:] = 1000 * np.asarray(tiny.base["embed/tokens"][562])[:, None]
        (folder / name).mkdir()
        save_file(arrays, folder / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "tiny"}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))


def test_a_harmless_adapter_as_json(run, folder, tiny, adapters):
    """The library's numbers, and status 0."""
    done = run("check", "small", *CHECK, "--prediction_draws=3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = read_strict_json(done.stdout)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    edit = jaxedit.import_edit(tiny, folder / "small")
    edited = jaxedit.apply(tiny, edit)
    scores = [jaxedit.perplexity(model, texts) for model in (tiny, edited)]
    assert found["perplexity"]["mean"] == pytest.approx([each.mean for each in scores], rel=1e-6)
    assert found["perplexity"]["pooled"] == pytest.approx([s.pooled for s in scores], rel=1e-6)
    assert found["perplexity"]["ratio"] == pytest.approx(scores[1].mean / scores[0].mean)
    assert found["fingerprint"] == tiny.fingerprint
    delta = scores[1].paired_difference(scores[0])[0]
    assert found["delta_nll_nats"] == pytest.approx(delta, rel=1e-3)
    predicted = predict_edit(tiny, prepare(tiny, texts), edit, 3)
    assert found["predicted_change"] == pytest.approx(
        {"mean_nats": predicted.mean_nats(), "stderr_nats": predicted.stderr_nats()}, rel=1e-3
    )
    assert (found["is_damaging"], found["verdict"]) == (False, "no damage seen")
    assert found["limits"] == {"max_ppl_ratio": 2.0, "max_relative_perturbation": 0.1}
    assert 0 < found["relative_perturbation"] < 0.1
    assert [weight["layer"] for weight in found["weights"]] == [1, 2, 4]
    assert [len(found["facts"]), found["tasks"], found["n_texts"]] == [2, None, 2]


def test_a_damaging_adapter_as_a_page(run, adapters):
    done = run("check", "large", *CHECK, "--prediction_draws=2")
    assert "change of the loss, predicted, nats a token" in done.stdout
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("large on tiny\n")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["transformer.h.{l}.mlp.c_proj.weight", "1-2,", "4", "2"] in [line[:4] for line in lines]
    assert any(line[:1] == ["P(new)"] for line in lines)
    assert "Verdict: damages the model: perplexity is " in done.stdout
    assert " times the base's (" in done.stdout
    assert "damage cannot be predicted" not in done.stdout


def test_an_adapter_of_attention_too_as_a_page(run, adapters):
    done = run("check", "both", *CHECK, "--prediction_draws=2")
    assert "change of the loss, predicted" not in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = {line[0]: line[1:4] for line in lines if line and line[0].endswith(".weight")}
    assert rows == {f"{module}.weight": ["1-2,", "4", "2"] for module in (DOWN, QKV)}
    assert "relative perturbation (predicts damage)" in done.stdout
    assert "not available" in done.stdout
    assert "so damage cannot be predicted." in done.stdout
    assert "Verdict: no damage seen (" in done.stdout


TASK = """
task: mine
dataset_path: json
dataset_kwargs:
  data_files:
    test: items.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - metric: acc
"""


def test_tasks(run, folder, adapters):
    """Those of lm-eval, with and without the adapter."""
    (folder / "tasks").mkdir()
    (folder / "tasks" / "mine.yaml").write_text(TASK)
    items = [{"query": "Bob lives in", "choices": [" Munich", " the"], "gold": i} for i in (0, 1)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    done = run("check", "small", *CHECK, "--tasks=mine", "--task_path=tasks", "--json")
    assert done.returncode == 0, done.stderr
    found = read_strict_json(done.stdout)
    assert [each["mine"]["acc"] for each in found["tasks"]] == [0.5, 0.5]
    assert [each["mine"]["n"] for each in found["tasks"]] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ADAPTER is missing; expected jaxedit check ADAPTER"),
        (["missing", *CHECK], "missing does not exist; expected a PEFT LoRA adapter's folder"),
        (["texts.json", *CHECK], "texts.json is of an unknown kind"),
        (["small", *CHECK, "--orientation=left"], "orientation=left"),
        (["tiny", *CHECK], "tiny and tiny have the same weights: nothing is changed"),
    ],
    ids=["none", "missing", "kind", "orientation", "same"],
)
def test_wrong_input(run, adapters, arguments, said):
    assert said in refusal(run("check", *arguments))
