"""The study: a fold of edits, each on the model with those before it, or each by itself."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from study_examples import (
    FACTS,
    TEXTS,
    TIGHT,
    assert_same_edit,
    by_hand,
    edits_of,
    only_kept,
    records,
    request,
)

import jaxedit
from jaxedit import LowRank, Request
from jaxedit.edits.edit import make_edit, read_edit, to_dense
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.metrics.perplexity import prepare
from jaxedit.metrics.perturbation import (
    read_key_probe,
    relative_perturbation,
    total_relative_perturbation,
)
from jaxedit.study import context, loop
from jaxedit.study.journal import read_journal

# sequential


def test_edits_accumulate(whole, model, editor):
    """The journal's edits and perplexities are those of editing step by step by hand."""
    folder = whole()
    assert [step.record.kept for step in read_journal(folder).steps[1:]] == [True] * 4
    found, edited = edits_of(folder), model
    for n, fact in enumerate(FACTS):
        assert_same_edit(found[n], by_hand(model, editor, FACTS[: n + 1]))
        assert not np.array_equal(to_dense(found[n].deltas[0]), np.zeros((192, 48)))
        edited = jaxedit.apply(edited, found[n])
        score = jaxedit.perplexity(edited, TEXTS)
        record = read_journal(folder).steps[n + 1].record
        assert record.perplexity["mean"] == score.mean
        assert record.perplexity["pooled"] == score.pooled
        assert (
            record.continuation
            == jaxedit.generate(edited, [request(fact).prompt_text], max_new_tokens=8)[0][
                len(request(fact).prompt_text) :
            ]
        )
        assert (record.case_id, record.subject) == (fact["case_id"], fact["subject"])


def test_the_edits_are_in_the_weights(whole, model, shared, tmp_path):
    """A checkpoint with the journal's kept edits added to its file has the perplexity that the
    journal ends with.
    """
    folder, copy = whole(ratio=TIGHT), tmp_path / "edited"
    shutil.copytree(shared / "golden" / "gpt2", copy)
    weights = load_file(copy / "model.safetensors")
    for edit in only_kept(folder):
        for name, change in edit.dense().items():
            stored = name if name in weights else f"transformer.{name}"
            weights[stored] = weights[stored] + change
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    kept = [step.record for step in read_journal(folder).steps[1:] if step.record.kept]
    assert 0 < len(kept) < len(FACTS)
    mean = jaxedit.perplexity(jaxedit.load(str(copy)), TEXTS).mean
    assert mean == pytest.approx(kept[-1].perplexity["mean"], rel=1e-5)
    assert mean != pytest.approx(jaxedit.perplexity(model, TEXTS).mean, rel=1e-3)


def test_a_record_says_what_was_measured(whole, model):
    folder = whole()
    first, *steps = read_journal(folder).steps
    unedited = jaxedit.perplexity(model, TEXTS)
    assert first.record.perplexity == {
        "mean": unedited.mean,
        "pooled": unedited.pooled,
        "n_non_finite": 0,
        "log_mean_nats": pytest.approx(np.log(unedited.mean)),
        "log_pooled_nats": pytest.approx(np.log(unedited.pooled)),
        "median": pytest.approx(np.exp(np.median(np.log(unedited.per_text)))),
        "log_median_nats": pytest.approx(np.median(np.log(unedited.per_text))),
    }
    np.testing.assert_array_equal(load_file(first.arrays)["nll_nats"], unedited.nll_nats)
    edited, probes = model, read_key_probe(model, prepare(model, TEXTS), (3,))
    for step, edit in zip(steps, edits_of(folder), strict=True):
        edited = jaxedit.apply(edited, edit)
        after, record = jaxedit.perplexity(edited, TEXTS), step.record
        difference = np.log(after.per_text) - np.log(unedited.per_text)
        measured = record.perplexity
        assert measured["ratio"] == after.mean / unedited.mean
        assert measured["delta_nll_nats"] == pytest.approx(difference.mean(), rel=1e-9)
        assert measured["delta_nll_stderr_nats"] == pytest.approx(
            difference.std(ddof=1) / np.sqrt(len(TEXTS)), rel=1e-9
        )
        assert record.edit_norm == pytest.approx(np.linalg.norm(to_dense(edit.deltas[0])), rel=1e-6)
        assert record.edit_norm_ratio == pytest.approx(
            record.edit_norm / np.linalg.norm(model.base["mlp/w_down"][3]), rel=1e-5
        )
        assert record.relative_perturbation == pytest.approx(
            relative_perturbation(probes, edit, model), rel=1e-5
        )
        assert record.total_relative_perturbation == pytest.approx(
            total_relative_perturbation(probes, edited), rel=1e-5
        )
        assert set(record.time_s) == {
            "edit",
            "perturbation",
            "apply",
            "facts",
            "generate",
            "perplexity",
        }
        assert record.optimisation["n_steps"] == 4
    # `before` is the unedited model's, also for an edit that is not the first.
    for fact, step in zip(FACTS, steps, strict=True):
        (expected,) = evaluate_facts(
            model,
            [Request(fact["prompt"], fact["subject"], fact["target_new"], fact.get("target_true"))],
        )
        assert step.record.unedited_metrics["probability_new"] == pytest.approx(
            expected["probability_new"], rel=1e-9
        )
    assert steps[1].record.metrics["probability_true"] > 0
    assert steps[0].record.metrics["probability_true"] is None


# single


def test_single_edits_do_not_see_each_other(whole, configure, model, editor, tmp_path):
    """Each is the edit of the untouched model, in whatever order they come, and none is kept."""
    alone = dict(mode="single", ratio=TIGHT, single_batch_size=1)
    folder = whole(**alone)
    found = edits_of(folder)
    steps = [step.record for step in read_journal(folder).steps[1:]]
    for fact, edit, record in zip(FACTS, found, steps, strict=True):
        assert_same_edit(edit, by_hand(model, editor, [fact]))
        alone_mean = jaxedit.perplexity(jaxedit.apply(model, edit), TEXTS).mean
        assert record.perplexity["mean"] == alone_mean
        assert not record.kept
        assert (record.guard_code is not None) == (record.perplexity["ratio"] > TIGHT)
    assert any(record.guard_code for record in steps)
    turned = loop.run_study(configure(FACTS[::-1], **alone), tmp_path / "turned")
    drop = ("step", "arrays")
    assert [{k: v for k, v in r.items() if k not in drop} for r in records(turned)[1:]] == [
        {k: v for k, v in r.items() if k not in drop} for r in records(folder)[:0:-1]
    ]
    for a, b in zip(edits_of(turned), found[::-1], strict=True):
        assert_same_edit(a, b)


def test_single_edits_leave_no_state(configure, remembering, tmp_path):
    folder = loop.run_study(configure(mode="single", action="keep", ratio=1.2), tmp_path / "run")
    assert [r["optimisation"]["n_learnt"] for r in records(folder)[1:]] == [0] * 4
    assert ["guard_code" in r for r in records(folder)[1:]] == [False, True, False, False]


# batches, and measuring every so often


@pytest.fixture(scope="module")
def in_pairs(configure, model, editor, tmp_path_factory):
    """A function: limit on the perturbation -> a study of two facts an edit, the perplexity due
    after every second edit; each is run once.
    """
    single_state = editor.init(model, None)

    def two_at_once(model, requests, state):
        rank_one = [editor.edit(model, [each], single_state)[0].deltas[0] for each in requests]
        u_FR, v_RD = (
            np.concatenate([getattr(d, f) for d in rank_one], axis)
            for f, axis in (("u_FR", 1), ("v_RD", 0))
        )
        return (
            make_edit(model, [LowRank("mlp/w_down", 3, u_FR, v_RD)]),
            state,
            {"n": float(len(requests))},
        )

    @functools.cache
    def run(limit: float | None = None) -> Path:
        config = configure(facts_per_edit=2, evaluation=dict(perplexity_every=2))
        if limit is not None:
            config.guard.max_relative_perturbation = limit
        pairs = editor._replace(edit=two_at_once, max_requests=None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(context, "editor_from", lambda config, **more: pairs)
            return loop.run_study(config, tmp_path_factory.mktemp("pairs") / "run")

    return run


def test_a_step_is_an_edit_of_facts_per_edit_facts(in_pairs):
    steps = [step.record for step in read_journal(in_pairs(1e6)).steps[1:]]
    assert [record.n_requests for record in steps] == [2, 2]
    assert [record.optimisation["n"] for record in steps] == [2, 2]
    assert steps[0].metrics["probability_new"] > steps[0].unedited_metrics["probability_new"]


def test_the_perplexity_is_measured_every_so_many_edits(in_pairs):
    steps = [step.record for step in read_journal(in_pairs(1e6)).steps[1:]]
    assert [record.perplexity is not None for record in steps] == [False, True]


def test_an_edit_that_perturbs_much_has_its_perplexity_measured_at_once(in_pairs):
    eager = read_journal(in_pairs()).steps[1:]
    assert eager[0].record.relative_perturbation > 0.1
    assert [step.record.perplexity is not None for step in eager] == [True, True]


def test_what_is_kept_at_the_end_is_looked_at_once_more(in_pairs, model):
    folder = in_pairs(1e6)
    retained = json.loads((folder / "retained.json").read_text())
    assert retained["steps"] == [1, 2]
    for step in read_journal(folder).steps[1:]:
        model = jaxedit.apply(model, read_edit(step.arrays))
    requests = [Request(**fact) for fact in FACTS]
    held = [fact["probability_new"] for fact in evaluate_facts(model, requests)]
    assert [fact["probability_new"] for fact in retained["facts"]] == pytest.approx(
        [np.mean(held[:2]), np.mean(held[2:])], rel=1e-4
    )
