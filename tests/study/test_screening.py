"""Screening: the prediction against its formula from plain PyTorch, and what a study does with it."""

import json

import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict

import jaxedit
from jaxedit.datasets import read_requests
from jaxedit.edits.serialise import read_edit
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import read_key_probe
from jaxedit.study.config import default_config
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
def config(shared, tmp_path) -> ConfigDict:
    (tmp_path / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    made = default_config("rome", layer=LAYER, v_num_grad_steps=3, context_templates=TEMPLATES)
    made.update(
        model=str(shared / "golden" / "gpt2"),
        facts=str(tmp_path / "facts.json"),
        texts=str(tmp_path / "texts.json"),
    )
    return made


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


def test_a_study_holds_back_or_switches(config, screened, tmp_path):
    predicted = [each.predicted for each in screened("rome")]
    hardest = int(np.argmax(predicted))
    limit = sorted(predicted)[1]
    recorded = records_of(config, tmp_path / "record", screening="log")
    assert [record.predicted_perturbation for record in recorded] == pytest.approx(predicted, rel=1e-6)
    config.guard.max_relative_perturbation = limit
    held = records_of(config, tmp_path / "hold", screening="skip")
    assert [(record.skipped == "screening") for record in held] == [i == hardest for i in range(3)]
    assert not held[hardest]["kept"]
    assert "held back: predicted perturbation" in held[hardest]["error"]
    switched = records_of(config, tmp_path / "switch", screening="c-rome")
    keys = dict(layer=LAYER, v_num_grad_steps=3, context_templates=TEMPLATES)
    model = jaxedit.load(config.model)
    (request,) = read_requests(config.facts).requests[hardest : hardest + 1]
    before = [
        read_edit(step.arrays) for step in read_journal(tmp_path / "switch").steps[1 : hardest + 1]
    ]
    for edit in before:
        model = jaxedit.apply(model, edit)
    by_method = {}
    for method in ("rome", "c-rome"):
        editor = jaxedit.make_editor(method, **keys)
        by_method[method] = editor.edit(model, [request], editor.init(model, None))[0].norm
    assert switched[hardest]["edit_norm"] == pytest.approx(by_method["c-rome"], rel=1e-6)
    assert by_method["rome"] != pytest.approx(by_method["c-rome"], rel=1e-3)
    for i in set(range(hardest)):  # those that are not hard are written by the study's own method
        assert switched[i]["edit_norm"] == recorded[i]["edit_norm"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(screening="skip"), "screen='skip': expected one of '', 'record', 'hold', 'c-rome'"),
        (
            dict(screening="skip", guard=dict(max_relative_perturbation=None)),
            "screen='hold' needs guard.max_relative_perturbation",
        ),
    ],
)
def test_what_cannot_be_meant(config, tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        records_of(config, tmp_path / "run", **keys)
