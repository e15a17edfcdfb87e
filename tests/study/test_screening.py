"""Screening: the prediction against its formula in PyTorch, and what a study does with it."""

import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict

import jaxedit
from jaxedit.datasets import read_requests
from jaxedit.edits.edit import read_edit
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import read_key_probe
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study
from jaxedit.study.screening import hard_and_normal, predict_damage, write_facts

FACTS = [
    {"case_id": 1, "prompt": "{} lives in", "subject": "BP", "target_new": "French"},
    {
        "case_id": 2,
        "prompt": "{} lives in",
        "subject": "Bob",
        "target_new": "Munich",
        "target_true": "London",
    },
    {
        "case_id": 3,
        "prompt": "The man {} lives in",
        "subject": "Ann",
        "target_new": "Paris",
        "paraphrases": ["Ann is from"],
    },
]
TEXTS = [
    " The mother tongue of the author",
    "What is the capital",
    "Once upon a time there was a girl who lived in the forest",
]
TEMPLATES = ("{}", "I am. {}")
LAYER = 3


@pytest.fixture
def config(study_config) -> ConfigDict:
    hyper = dict(layer=LAYER, v_num_grad_steps=3, context_templates=TEMPLATES)
    return study_config("rome", FACTS, TEXTS, hyper)


@pytest.fixture(scope="module")
def requests():
    fields = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in fact.items()} for fact in FACTS
    ]
    return [jaxedit.Request(**fact) for fact in fields]


@pytest.fixture(scope="module")
def screened(golden, requests):
    """A function: (method, **hyper) -> what is predicted of the requests."""
    model = golden("gpt2")
    probes = read_key_probe(model, prepare(model, TEXTS), (LAYER,))

    def run(method, **hyper):
        editor = jaxedit.make_editor(method, layer=LAYER, context_templates=TEMPLATES, **hyper)
        return predict_damage(model, requests, editor, editor.init(model, None), probes)

    return run


def torch_prediction(shared, model, request, left: str, right: str) -> tuple[float, float]:
    """(predicted, denominator) from hooks on whole forward passes; keys are "bare" or the mean
    "prefixed" one.
    """
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        shared / "golden" / "gpt2", dtype=torch.float32
    ).eval()
    seen = []
    hf.transformer.h[LAYER].mlp.c_proj.register_forward_hook(
        lambda module, args, out: seen.append((args[0][0], out[0]))
    )

    def at_subject(template):
        text = template.format(request.prompt.format(request.subject))
        before = text[: text.index(request.subject) + len(request.subject)]
        with torch.no_grad():
            hf(torch.tensor([model.tokenizer.encode(text)]))
        key_TF, value_TD = seen[-1]
        at = len(model.tokenizer.encode(before)) - 1
        return key_TF[at].double().numpy(), value_TD[at].double().numpy()

    keys = {
        "bare": at_subject("{}")[0],
        "prefixed": np.mean([at_subject(each)[0] for each in TEMPLATES], axis=0),
    }
    u_F = keys[left] / np.linalg.norm(keys[left])
    pushes = []
    for text in TEXTS:
        with torch.no_grad():
            found = hf(
                torch.tensor([model.tokenizer.encode(text, bos=False)]), output_hidden_states=True
            )
        norm_T = np.linalg.norm(found.hidden_states[LAYER + 1][0, 1:].double().numpy(), axis=1)
        pushes.append(np.abs(seen[-1][0][1:].double().numpy() @ u_F) / norm_T)
    denominator = abs(float(u_F @ keys[right]))
    clamp = 4.0  # the published clamp_norm_factor
    return float(
        clamp * np.mean(np.concatenate(pushes)) * np.linalg.norm(at_subject("{}")[1]) / denominator
    ), denominator


@pytest.mark.parametrize(
    ("method", "hyper", "left", "right"),
    [
        ("rome", {}, "prefixed", "bare"),
        ("rome", dict(key_variant="bare"), "bare", "bare"),
        ("c-rome", {}, "prefixed", "prefixed"),
    ],
)
def test_the_formula(golden, shared, requests, screened, method, hyper, left, right):
    for each, request in zip(screened(method, **hyper), requests, strict=True):
        wanted, denominator = torch_prediction(shared, golden("gpt2"), request, left, right)
        assert each.request is request
        assert each.denominator == pytest.approx(denominator, rel=1e-4)
        assert each.predicted == pytest.approx(wanted, rel=1e-4)


def test_only_rank_one_edits_are_predicted(golden, requests):
    model = golden("gpt2")
    editor = jaxedit.make_editor("ft", layers=(LAYER,))
    with pytest.raises(ValueError, match=r"rank-one edits do \(rome, c-rome\); the method is ft"):
        predict_damage(
            model, requests, editor, None, read_key_probe(model, prepare(model, TEXTS), (LAYER,))
        )


def test_the_file_of_hard_cases_is_read_as_facts(requests, screened, tmp_path):
    found = screened("rome")
    limit = sorted(each.predicted for each in found)[1]
    hard, normal = hard_and_normal(found, limit)
    assert (len(hard), len(normal)) == (1, 1)
    assert hard[0].predicted == max(each.predicted for each in found)
    write_facts(tmp_path / "out" / "all.json", found)
    assert read_requests(str(tmp_path / "out" / "all.json")).requests == requests


def records_of(config, folder, **keys):
    config.update(keys)
    return [step.record for step in read_journal(run_study(config, folder)).steps[1:]]


def test_a_study_logs_skips_or_switches(config, screened, tmp_path):
    predicted = [each.predicted for each in screened("rome")]
    hardest = int(np.argmax(predicted))
    logged = records_of(config, tmp_path / "log", screening="log")
    found = [record.predicted_perturbation for record in logged]
    assert found == pytest.approx(predicted, rel=1e-6)

    config.guard.max_relative_perturbation = sorted(predicted)[1]
    skipped = records_of(config, tmp_path / "skip", screening="skip")
    assert [record.skipped for record in skipped] == [
        "screening" if i == hardest else None for i in range(3)
    ]
    hard = skipped[hardest]
    assert (hard.kept, hard.error, hard.metrics, hard.is_made) == (False, None, None, False)
    assert hard.predicted_perturbation == pytest.approx(predicted[hardest], rel=1e-6)

    # The hard one is written by C-ROME, on the model with the edits before it; the others by ROME.
    switched = records_of(config, tmp_path / "switch", screening="c-rome")
    model = jaxedit.load(config.model)
    for step in read_journal(tmp_path / "switch").steps[1 : hardest + 1]:
        model = jaxedit.apply(model, read_edit(step.arrays))
    request = read_requests(config.facts).requests[hardest]
    keys = dict(layer=LAYER, v_num_grad_steps=3, context_templates=TEMPLATES)
    norms = {}
    for method in ("rome", "c-rome"):
        editor = jaxedit.make_editor(method, **keys)
        norms[method] = editor.edit(model, [request], editor.init(model, None))[0].norm
    assert switched[hardest].edit_norm == pytest.approx(norms["c-rome"], rel=1e-6)
    assert norms["rome"] != pytest.approx(norms["c-rome"], rel=1e-3)
    for i in range(hardest):
        assert switched[i].edit_norm == logged[i].edit_norm


@pytest.mark.parametrize("screening", ["skip", "c-rome"])
def test_screening_needs_a_limit(config, tmp_path, screening):
    guard = dict(max_relative_perturbation=None)
    with pytest.raises(
        ValueError, match=rf"screening='{screening}' needs guard\.max_relative_pert"
    ):
        records_of(config, tmp_path / "run", screening=screening, guard=guard)


@pytest.mark.parametrize(
    ("screening", "message"),
    [
        ("drop", "screening='drop': expected one of '', 'log', 'skip', 'c-rome'"),
        ("hold", "screening='hold' is called 'skip' now"),
    ],
)
def test_an_unknown_screening_is_refused(config, tmp_path, screening, message):
    with pytest.raises(ValueError, match=message):
        records_of(config, tmp_path / "run", screening=screening)


def test_an_anchor_counts_in_the_prediction(tiny_checkpoint):
    """With anchor="bos" the keys are those behind a begin-of-text token, as they are edited."""
    model = jaxedit.load(str(tiny_checkpoint("llama")), add_bos=False)
    with_token = jaxedit.load(str(tiny_checkpoint("llama")), add_bos=True)
    request = jaxedit.Request("{} lives in", "Bob", "Paris")
    keys = dict(layer=1, context_templates=TEMPLATES)
    found = []
    for each, anchor in ((model, "bos"), (with_token, None), (model, None)):
        editor = jaxedit.make_editor("rome", anchor=anchor, **keys)
        key_probe = read_key_probe(each, prepare(each, TEXTS), (1,))
        state = editor.init(each, None)
        found.append(predict_damage(each, [request], editor, state, key_probe)[0].predicted)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] != pytest.approx(found[2], rel=1e-2)
