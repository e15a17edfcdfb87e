"""A guard that measured too seldom: damage that it finds later is undone, not blamed on others."""

import pytest

from jaxedit.metrics.perplexity import perplexity
from jaxedit.study import evaluation, loop, unseen_damage
from jaxedit.study.journal import read_journal
from jaxedit.study.replay import edited_model

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": target}
    for subject, target in (("BP", "Paris"), ("Bob", "Paris"), ("Ann", "Paris"), ("BP", "Rome"))
]
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]
LIMIT = 1.01


@pytest.fixture
def run(study_config, tmp_path, monkeypatch):
    """Make a function: (folder, **keys) -> the folder of a study.

    Only the last edit is measured: no prediction asks for more.
    """
    monkeypatch.setattr(evaluation, "must_measure", lambda *_: False)

    def make(folder, action="rollback", facts=FACTS, **keys):
        hyper = dict(layer=3, context_templates=("{}",), v_num_grad_steps=4, clamp_norm_factor=0.1)
        measured = dict(prediction_draws=2, perplexity_every="auto")
        guard = dict(max_ppl_ratio=LIMIT, max_relative_perturbation=None, action=action)
        config = study_config("rome", facts, TEXTS, hyper, measured, guard=guard, **keys)
        return loop.run_study(config, tmp_path / folder)

    return make


def records(folder):
    return [step.record for step in read_journal(folder).steps[1:]]


def is_over(folder, steps):
    """Tell whether the model with these edits is over the limit."""
    unedited, edited = (edited_model(folder, run_steps=chosen) for chosen in ([], steps))
    return perplexity(edited, TEXTS).mean > LIMIT * perplexity(unedited, TEXTS).mean


def test_what_was_kept_unmeasured_is_undone(run):
    """Each edit that takes those before it over the limit, and no other."""
    folder = run("auto")
    made = records(folder)
    assert [record.step for record in made if record.perplexity] == [4]
    kept = []
    for step in (1, 2, 3):
        kept += [] if is_over(folder, [*kept, step]) else [step]
    assert len(kept) in (1, 2)
    assert [record.step for record in made[:3] if record.kept] == kept
    assert [record.undone_after for record in made[:3] if not record.kept] == [3] * (3 - len(kept))
    assert made[3].kept == (not is_over(folder, [*kept, 4])) == (made[3].guard_code is None)


def test_the_last_edit_is_made_again_on_the_mended_model(run):
    folder = run("auto")
    *before, last = records(folder)
    steps = [*(record.step for record in before if record.kept), last.step]
    measured = perplexity(edited_model(folder, run_steps=steps), TEXTS).mean
    assert (last.perplexity or {})["mean"] == pytest.approx(measured, rel=1e-5)


def test_a_study_that_stops_leaves_the_model_before_the_damage(run):
    folder = run("stop", action="stop")
    made = records(folder)
    first = next(step for step in (1, 2, 3) if is_over(folder, list(range(1, step + 1))))
    assert [record.kept for record in made] == [record.step < first for record in made]
    assert made[-1].guard_code == "ppl_ratio"
    assert {record.undone_after for record in made if not record.kept} == {None, made[-1].step}
    run("stop", action="stop")  # it is over
    assert records(folder) == made


def test_a_study_that_was_interrupted_before_the_undo_ends_as_the_others(run, monkeypatch):
    whole = [record.kept for record in records(run("whole", action="stop"))]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "undo_unseen_damage", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("stop", action="stop")
    folder = run("stop", action="stop")
    assert [record.kept for record in records(folder)] == whole


def test_only_what_was_kept_since_the_last_measurement_is_measured_again(run, monkeypatch):
    due, measured = iter([True, False, False]), []
    monkeypatch.setattr(evaluation, "must_measure", lambda *_: next(due))

    def counted(model, texts):
        measured.append(model)
        return perplexity(model, texts)

    monkeypatch.setattr(unseen_damage, "perplexity", counted)
    made = records(run("auto"))
    assert [record.step for record in made if record.perplexity] == [1, 4]
    assert len(measured) == 3  # the model without the fourth, after the second, after the third
    assert [record.step for record in made if record.undone_after] == [2]
    assert made[1].undone_reason == "kept unmeasured, over the guard's limit"


def test_where_the_last_edit_cannot_be_made_what_was_kept_is_measured(run):
    """Its prompt is longer than the model's positions."""
    long = {"prompt": "{} lives in" + " a house and" * 400, "subject": "Ann", "target_new": "Rome"}
    folder = run("auto", facts=[*FACTS[:2], long])
    *_, last = made = records(folder)
    assert last.error
    assert [record.kept for record in made] == [True, False, False]
    assert not is_over(folder, [1])


def test_a_guard_that_keeps_undoes_nothing(run):
    assert all(record.kept for record in records(run("keep", action="keep")))


def test_a_study_goes_on_from_what_was_left(run):
    """The third edit is the last one at first, so damage is found there already."""
    folder = run("part", n_facts=3)
    found = [record.kept for record in records(folder)]
    assert not all(found)
    run("part", n_facts=4)
    made = records(folder)
    assert [record.kept for record in made[:3]] == found
    assert not is_over(folder, [record.step for record in made if record.kept])


def test_edits_that_are_not_journalled_one_by_one_cannot_be_undone(run):
    with pytest.raises(ValueError, match=r"journal_dense_every=2: with .* may undo earlier edits"):
        run("dense", journal_dense_every=2)
