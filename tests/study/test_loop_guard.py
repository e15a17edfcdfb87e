"""The guard's action in a study: a rejected edit leaves no trace, a kept one is only noted."""

import json

import numpy as np
import pytest
from study_examples import (
    FACTS,
    TEXTS,
    TIGHT,
    assert_same_edit,
    by_hand,
    content,
    edits_of,
    only_kept,
    perplexities,
    records,
)

import jaxedit
from jaxedit.edits.edit import to_dense
from jaxedit.study import loop
from jaxedit.study.journal import read_journal


def test_a_rolled_back_edit_leaves_no_trace(whole, model, editor):
    folder = whole(ratio=TIGHT)
    steps = [step.record for step in read_journal(folder).steps[1:]]
    assert [step.kept for step in steps] == [True, False, True, True]
    ratio = steps[1].perplexity["ratio"]
    assert ratio > TIGHT
    assert steps[1].guard_code == "ppl_ratio"
    assert steps[1].guard_reason == f"perplexity {ratio:.3g} times the unedited model's"
    assert [step.guard_code for step in steps if step.kept] == [None] * 3
    first, damaging, third, _ = edits_of(folder)
    assert_same_edit(third, by_hand(model, editor, [FACTS[0], FACTS[2]]))
    assert (
        steps[2].perplexity["mean"]
        == jaxedit.perplexity(jaxedit.apply(jaxedit.apply(model, first), third), TEXTS).mean
    )
    # and it is another than where the damaging one is kept
    assert not np.array_equal(to_dense(third.deltas[0]), to_dense(edits_of(whole())[2].deltas[0]))
    assert_same_edit(damaging, edits_of(whole())[1])  # what was rolled back can be looked at


@pytest.mark.parametrize("bad", ["Bob", "Nan", "Huge", "Nobody"])
def test_a_rejected_edit_leaves_no_state(configure, remembering, model, tmp_path, bad):
    """Neither one rolled back nor one that failed: what follows is the study that never asked for
    it.
    """
    asked = [FACTS[0], {**FACTS[1], "subject": bad}, *FACTS[2:]]
    with_it = loop.run_study(configure(asked, ratio=1.2), tmp_path / "with")
    without = loop.run_study(configure([FACTS[0], *FACTS[2:]], ratio=1.2), tmp_path / "without")
    found, expected = records(with_it), records(without)
    assert [r["kept"] for r in found[1:]] == [True, False, True, True]
    assert [r["optimisation"]["n_learnt"] for r in expected[1:]] == [0, 1, 2]
    drop = ("step", "arrays")
    for a, b in zip([*found[:2], *found[3:]], expected, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {
            k: v for k, v in b.items() if k not in drop
        }
    for a, b in zip(only_kept(with_it), edits_of(without), strict=True):
        assert_same_edit(a, b)
    code = {"Bob": "ppl_ratio", "Nan": "non_finite_edit", "Huge": "non_finite_loss"}.get(bad)
    assert found[2].get("error", "") == ("Nobody cannot be edited" if bad == "Nobody" else "")
    assert found[2].get("guard_code") == code


def test_an_edit_beyond_what_is_finite(configure, remembering, tmp_path):
    """Its numbers are journalled as text that `float` reads, and the study goes on without it."""
    folder = loop.run_study(
        configure([{**FACTS[0], "subject": "Nan"}, FACTS[2]], ratio=1.2), tmp_path / "run"
    )
    broken, fine = (step.record for step in read_journal(folder).steps[1:])
    assert broken.guard_code == "non_finite_edit"
    assert broken.guard_reason == "the edit itself is not finite"
    assert (broken.perplexity["mean"], broken.perplexity["n_non_finite"]) == (np.inf, len(TEXTS))
    assert np.isnan(broken.edit_norm)
    assert broken.metrics["probability_new"] == 0.0
    line = json.loads((folder / "journal.jsonl").read_text().splitlines()[1])
    assert (line["perplexity"]["mean"], line["edit_norm"]) == ("inf", "nan")
    assert fine.kept
    assert fine.perplexity["n_non_finite"] == 0


def test_keep_keeps_a_damaging_edit(whole, configure, tmp_path):
    """The same model as without a guard; only the journal says what happened."""
    folder = loop.run_study(configure(ratio=TIGHT, action="keep"), tmp_path / "run")
    steps = [step.record for step in read_journal(folder).steps[1:]]
    assert [step.kept for step in steps] == [True] * 4
    over = [step.perplexity["ratio"] > TIGHT for step in steps]
    assert [step.guard_code == "ppl_ratio" for step in steps] == over
    assert over[1]
    assert perplexities(folder) == perplexities(whole())
    for a, b in zip(edits_of(folder), edits_of(whole()), strict=True):
        assert_same_edit(a, b)


def test_stop_ends_for_good(whole, configure, tmp_path):
    seen = []
    config = configure(ratio=TIGHT, action="stop")
    folder = loop.run_study(
        config, tmp_path / "run", lambda record, total: seen.append((record.step, total))
    )
    assert seen == [(0, 4), (1, 4), (2, 4)]
    steps = [step.record for step in read_journal(folder).steps]
    assert [step.kept for step in steps] == [None, True, False]
    assert steps[2].guard_code == "ppl_ratio"
    assert perplexities(folder) == perplexities(whole(ratio=TIGHT))[:3]
    before = content(folder)
    again = []
    loop.run_study(config, folder, lambda record, total: again.append((record.step, total)))
    assert again == seen
    assert content(folder) == before
