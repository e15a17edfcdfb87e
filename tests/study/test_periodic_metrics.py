"""What is measured now and then: retention, divergence, fluency, consistency, what prompts bring;
and the heat map.
"""

import json

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import read_edit
from jaxedit.metrics.consistency import IDF, SNIPPETS, VOCABULARY, consistency, read_references
from jaxedit.metrics.divergence import kl_divergence
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.metrics.fluency import fluency, generate_texts
from jaxedit.metrics.perplexity import prepare
from jaxedit.reports.figures import retention_figure
from jaxedit.reports.records import retention_table
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
    for subject in ("BP", "Bob", "Ann", "Tim")
]
FACTS[1] |= {"generation_prompts": ["Bob is", "Bob likes"], "relation": "P551", "target_id": "Q90"}
PROMPTS = ("The capital of France is", "Once upon a time")
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]
EVERY = dict(retention_every=2, kl_every=3, fluency_every=2)


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
def run(study_config, folder):
    """A function: (folder's name, method, hyper, facts, evaluation, **keys) -> a study's folder."""

    def make(name, method="rome", hyper=None, asked=FACTS, evaluation=EVERY, **keys):
        hyper = hyper or dict(layer=3, context_templates=("{}", "I am. {}"))
        hyper = dict(v_num_grad_steps=4, **hyper)
        guard = dict(action="keep")
        config = study_config(method, asked, TEXTS, hyper, evaluation, guard=guard, **keys)
        return run_study(config, folder / name)

    return make


@pytest.fixture(scope="module")
def studied(run, folder):
    said = dict(prompts=PROMPTS, reference_texts=str(folder))
    return run("sequential", evaluation=dict(**said, **EVERY))


def test_records_hold_what_was_due(studied, golden):
    steps = read_journal(studied).steps[1:]
    assert [step.record.retention is not None for step in steps] == [False, True, False, True]
    assert [step.record.kl_nats is not None for step in steps] == [False, False, True, False]
    assert [step.record.ngram_entropy_bits is not None for step in steps] == [
        False,
        True,
        False,
        True,
    ]
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


def test_the_heat_map_is_what_the_journal_holds(studied):
    journal = read_journal(studied)
    edits, evaluations, values = retention_table(journal)
    assert (edits, evaluations) == ([1, 2, 3, 4], [2, 4])
    assert np.isnan(values).tolist() == [
        [False, False],
        [False, False],
        [True, False],
        [True, False],
    ]
    last = journal.steps[4].record.retention
    assert values[:, 1].tolist() == [last[str(n)]["probability_new"] for n in edits]
    figure = retention_figure(journal)
    (mesh,) = figure.axes[0].collections
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), np.nan), values)


@pytest.mark.parametrize(
    ("method", "unusable"), [("rome", False), ("rome", True), ("memit", False)]
)
@pytest.mark.same_bits
def test_single_edits_are_each_measured_with_their_own_edit_once(
    run, folder, golden, method, unusable
):
    """Made in a batch, one by one since a fact of the batch cannot be edited, or by a method that
    makes no batches of them: the same measurements.
    """
    asked = [*FACTS, {**FACTS[0], "subject": "Bob and " * 200 + "Ann"}] if unusable else FACTS
    hyper = None
    if method == "memit":
        templates = (("{}",), ("I am. {}",))
        hyper = dict(layers=(2, 3), mom2_adjustment=False, context_templates=templates)
    name = f"single-{method}-{unusable}"
    every = dict(prompts=PROMPTS, reference_texts=str(folder), **EVERY)
    keys = dict(mode="single", single_batch_size=16)
    steps = read_journal(run(name, method, hyper, asked, every, **keys)).steps[1:]
    assert not any(step.record.retention is not None for step in steps)
    assert [(step.record.batch_first_step is not None) for step in steps[:4]] == [
        method == "rome" and not unusable
    ] * 4
    assert [step.record.kl_nats is not None for step in steps[:4]] == [False, False, True, False]
    assert [step.record.ngram_entropy_bits is not None for step in steps[:4]] == [
        False,
        True,
        False,
        True,
    ]
    unedited = golden("gpt2")
    texts = prepare(unedited, TEXTS)
    third, second = (jaxedit.apply(unedited, read_edit(steps[i].arrays)) for i in (2, 1))
    assert steps[2].record.kl_nats == pytest.approx(kl_divergence(third, unedited, texts), rel=1e-4)
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


def test_values_that_no_study_can_have(run):
    message = r"eval\.prompts=\('',\): expected a list of texts, each with something in it"
    with pytest.raises(ValueError, match=message):
        run("wrong", evaluation=dict(prompts=("",)))
    message = r"eval\.retention_every=-1: expected a number of edits, or 0 for never"
    with pytest.raises(ValueError, match=message):
        run("wrong", evaluation=dict(retention_every=-1))
