"""What is measured now and then: retention, divergence, fluency, consistency, what prompts bring;
and the heat map.
"""

import json

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.serialise import read_edit
from jaxedit.metrics.consistency import IDF, SNIPPETS, VOCABULARY, consistency, read_references
from jaxedit.metrics.divergence import kl_divergence
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.metrics.fluency import fluency, generate_texts
from jaxedit.metrics.perplexity import prepare
from jaxedit.reports.figures import draw_retention
from jaxedit.reports.markdown import write_report
from jaxedit.reports.records import retention_table
from jaxedit.study.config import default_config
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
    for subject in ("BP", "Bob", "Ann", "Tim")
]
FACTS[1] |= {"generation_prompts": ["Bob is", "Bob likes"], "relation": "P551", "target_id": "Q90"}
PROMPTS = ("The capital of France is", "Once upon a time")
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]
EVERY = dict(retention_every=2, divergence_every=3, fluency_every=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Facts, texts, and reference texts in the ROME repository's form."""
    folder = tmp_path_factory.mktemp("retention")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    samples = [{"text": "Paris is the home of many"}]
    (folder / SNIPPETS).write_text(
        json.dumps([{"relation_id": "P551", "target_id": "Q90", "samples": samples}])
    )
    (folder / VOCABULARY).write_text(
        json.dumps({word: i for i, word in enumerate(("bob", "is", "likes", "the"))})
    )
    np.save(folder / IDF, np.array([2.0, 1.0, 3.0, 1.5]))
    return folder


@pytest.fixture(scope="module")
def run(shared, folder):
    """A function: **keys -> the folder of a study."""

    def make(name, method="rome", hyper=None, **keys):
        hyper = hyper or dict(layer=3, context_templates=("{}", "I am. {}"))
        config = default_config(method, v_num_grad_steps=4, **hyper)
        places = dict(facts=str(folder / "facts.json"), texts=str(folder / "texts.json"))
        config.update(
            model=str(shared / "golden" / "gpt2"), guard=dict(action="keep"), **{**places, **keys}
        )
        return run_study(config, folder / name)

    return make


@pytest.fixture(scope="module")
def studied(run, folder):
    return run("sequential", prompts=PROMPTS, references=str(folder), **EVERY)


def test_records_hold_what_was_due(studied, golden):
    steps = read_journal(studied).steps[1:]
    assert [step.record.retention is not None for step in steps] == [False, True, False, True]
    assert [step.record.kl_nats is not None for step in steps] == [False, False, True, False]
    assert [step.record.ngram_entropy_bits is not None for step in steps] == [False, True, False, True]
    unedited = model = golden("gpt2")
    requests = [
        jaxedit.Request(**{k: v for k, v in fact.items() if isinstance(v, str)}) for fact in FACTS
    ]
    for number, step in enumerate(steps, 1):
        model = jaxedit.apply(model, read_edit(step.arrays))
        if number == 2:
            texts = generate_texts(model, ["Bob is", "Bob likes"])
            assert step.record.ngram_entropy_bits == pytest.approx(fluency(texts), rel=1e-6)
            references = read_references(str(studied.parent))
            bob = jaxedit.Request("{} lives in", "Bob", "Paris", relation="P551", target_id="Q90")
            assert step.record.reference_score == pytest.approx(
                consistency(references, bob, texts), rel=1e-6
            )
        if number == 3:
            wanted = kl_divergence(model, unedited, prepare(unedited, TEXTS))
            assert step.record.kl_nats == pytest.approx(wanted, rel=1e-4)
        if number in (2, 4):
            wanted = [fact["probability_new"] for fact in evaluate_facts(model, requests[:number])]
            found = step.record.retention
            assert list(found) == [str(n) for n in range(1, number + 1)]
            assert [each["probability_new"] for each in found.values()] == pytest.approx(
                wanted, rel=1e-4
            )


def test_prompts_before_and_after(studied, golden):
    steps = read_journal(studied).steps
    said = [
        step.record.prompt_continuations for step in steps
    ]  # perplexity is measured after every edit
    unedited = golden("gpt2")
    edited = jaxedit.apply(unedited, *[read_edit(step.arrays) for step in steps[1:2]])
    for model, texts in ((unedited, said[0]), (edited, said[1])):
        assert [
            prompt + text for prompt, text in zip(PROMPTS, texts, strict=True)
        ] == jaxedit.generate(model, list(PROMPTS))
    before = jaxedit.generate(unedited, ["Bob lives in"], max_new_tokens=8)[0]
    assert "Bob lives in" + steps[2].record.unedited_continuation == before


def test_the_heat_map(studied, tmp_path):
    journal = read_journal(studied)
    numbers, times, value_NT = retention_table(journal)
    assert (numbers, times) == ([1, 2, 3, 4], [2, 4])
    assert np.isnan(value_NT).tolist() == [
        [False, False],
        [False, False],
        [True, False],
        [True, False],
    ]
    assert draw_retention(journal, tmp_path / "retention")
    assert (tmp_path / "retention.png").stat().st_size > 5_000
    assert "![P(new) of each fact as more are written](retention.png)" in write_report(
        studied
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "at_once", "unusable"),
    [("rome", 16, False), ("rome", 1, False), ("rome", 16, True), ("memit", 16, False)],
)
def test_single_edits_are_each_measured_with_their_own_edit_once(
    run, folder, golden, method, at_once, unusable
):
    """Made in a batch, one by one, or one by one since a fact of the batch cannot be edited: the
    same measurements.
    """
    asked = [*FACTS, {**FACTS[0], "subject": "Bob and " * 200 + "Ann"}] if unusable else FACTS
    path = folder / f"asked-{len(asked)}.json"
    path.write_text(json.dumps(asked), encoding="utf-8")
    hyper = (
        dict(layers=(2, 3), mom2_adjustment=False, context_templates=(("{}",), ("I am. {}",)))
        if method == "memit"
        else {}
    )
    name = f"single-{method}-{at_once}-{unusable}"
    keys = dict(facts=str(path), single_batch_size=at_once, prompts=PROMPTS, references=str(folder))
    steps = read_journal(run(name, method, hyper, mode="single", **keys, **EVERY)).steps[1:]
    assert not any(step.record.retention is not None for step in steps)
    assert [(step.record.batch_first_step is not None) for step in steps[:4]] == [
        method == "rome" and at_once > 1 and not unusable
    ] * 4
    assert [step.record.kl_nats is not None for step in steps[:4]] == [False, False, True, False]
    assert [step.record.ngram_entropy_bits is not None for step in steps[:4]] == [False, True, False, True]
    unedited = golden("gpt2")
    texts = prepare(unedited, TEXTS)
    third, second = (jaxedit.apply(unedited, read_edit(steps[i].arrays)) for i in (2, 1))
    assert steps[2].record.kl_nats == pytest.approx(
        kl_divergence(third, unedited, texts), rel=1e-4
    )
    spoken = generate_texts(second, ["Bob is", "Bob likes"])
    assert steps[1].record.ngram_entropy_bits == pytest.approx(fluency(spoken), rel=1e-6)
    bob = jaxedit.Request("{} lives in", "Bob", "Paris", relation="P551", target_id="Q90")
    wanted = consistency(read_references(str(folder)), bob, spoken)
    assert steps[1].record.reference_score == pytest.approx(wanted, rel=1e-6)
    for step in steps[:4]:
        edited = jaxedit.apply(unedited, read_edit(step.arrays))
        said = [
            prompt + text
            for prompt, text in zip(PROMPTS, step.record.prompt_continuations, strict=True)
        ]
        assert said == jaxedit.generate(edited, list(PROMPTS))


def test_what_cannot_be_meant(run):
    with pytest.raises(
        ValueError, match=r"prompts=\('',\): expected a list of texts, each with something in it"
    ):
        run("wrong", prompts=("",))
    with pytest.raises(
        ValueError, match="retention_every=-1: expected a number of edits, or 0 for never"
    ):
        run("wrong", retention_every=-1)
