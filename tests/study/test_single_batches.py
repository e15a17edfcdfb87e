"""Single edits that are made together: the same edits, a lot at a time, and a lot that was not
finished is done again whole.
"""

import dataclasses

import numpy as np
import pytest
from study_examples import IN_PARIS, ONE_TEXT, TEMPLATES

import jaxedit
from jaxedit.edits.edit import read_edit, to_dense
from jaxedit.files import to_json
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.study import loop
from jaxedit.study.evaluation import ANSWER_TOKENS
from jaxedit.study.journal import read_journal


@pytest.fixture
def run(study_config, tmp_path):
    """A function: (folder's name, facts, on_step, **keys) -> single edits in batches of two."""
    hyper = dict(layer=3, v_num_grad_steps=4, context_templates=TEMPLATES)

    def study(name, asked=IN_PARIS, on_step=lambda record, total: None, method="rome", **keys):
        keys = {"mode": "single", "single_batch_size": 2, **keys}
        config = study_config(method, asked, ONE_TEXT, hyper, **keys)
        return loop.run_study(config, tmp_path / name, on_step)

    return study


def edits_of(folder):
    return [read_edit(step.arrays).deltas[0] for step in read_journal(folder).steps[1:]]


@pytest.mark.parametrize("method", ["rome", "c-rome"])
def test_together_they_are_what_each_is_alone(run, golden, method):
    folder = run("run", method=method)
    model = golden("gpt2")
    editor = jaxedit.make_editor(method, layer=3, v_num_grad_steps=4, context_templates=TEMPLATES)
    steps = read_journal(folder).steps[1:]
    assert [step.record.batch_first_step for step in steps] == [1, 1, 3, 3, 5]
    for fact, step, found in zip(IN_PARIS, steps, edits_of(folder), strict=True):
        edit, _, info = editor.edit(model, [jaxedit.Request(**fact)], editor.init(model, None))
        wanted_FD = to_dense(edit.deltas[0])
        assert np.linalg.norm(to_dense(found) - wanted_FD) <= 1e-4 * np.linalg.norm(wanted_FD)
        assert step.record.optimisation["loss"] == pytest.approx(info["loss"], rel=1e-4)
        after = jaxedit.perplexity(jaxedit.apply(model, edit), ONE_TEXT).mean
        assert step.record.perplexity["mean"] == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("method", ["rome", "c-rome"])
def test_together_they_are_measured_as_each_is_alone(run, golden, method):
    """Each step's facts and continuation are those of the model with that step's edit only."""
    model = golden("gpt2")
    unedited_says, edited_says = [], []
    for fact, step in zip(IN_PARIS, read_journal(run("run", method=method)).steps[1:], strict=True):
        request, record = jaxedit.Request(**fact), step.record
        edited = jaxedit.apply(model, read_edit(step.arrays))
        for version, metrics, continuation in (
            (model, record.unedited_metrics, record.unedited_continuation),
            (edited, record.metrics, record.continuation),
        ):
            (expected,) = evaluate_facts(version, [request], prefix="I am. {}")
            assert metrics["probability_new"] == pytest.approx(
                expected["probability_new"], rel=1e-4
            )
            (text,) = jaxedit.generate(version, [request.prompt_text], max_new_tokens=ANSWER_TOKENS)
            assert request.prompt_text + continuation == text
        unedited_says.append(record.unedited_continuation)
        edited_says.append(record.continuation)
    assert edited_says != unedited_says


def test_an_unfinished_batch_is_done_again_whole(run):
    whole = run("whole")

    def interrupt(record, total):
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("run", on_step=interrupt)
    seen = []
    folder = run("run", on_step=lambda record, total: seen.append(record.step))
    assert seen == [0, 1, 2, 3, 4, 5]
    for a, b in zip(read_journal(folder).steps, read_journal(whole).steps, strict=True):
        assert a.arrays.read_bytes() == b.arrays.read_bytes()
        mine, theirs = (dataclasses.replace(step.record, time_s=None) for step in (a, b))
        assert to_json(mine.to_dict()) == to_json(theirs.to_dict())


def test_more_facts_later_begin_with_the_batch_that_was_cut_short(run):
    run("run", n_facts=3)
    grown = run("run", n_facts=5)
    whole = run("whole", n_facts=5)
    assert [step.record.batch_first_step for step in read_journal(grown).steps[1:]] == [
        1,
        1,
        3,
        3,
        5,
    ]
    for mine, theirs in zip(edits_of(grown), edits_of(whole), strict=True):
        np.testing.assert_array_equal(to_dense(mine), to_dense(theirs))


def test_one_request_that_cannot_be_edited_does_not_spoil_its_batch(run):
    asked = [
        IN_PARIS[0],
        {**IN_PARIS[1], "subject": "Bob and " * 200 + "Ann"},
        IN_PARIS[2],
        IN_PARIS[3],
    ]
    records = [step.record for step in read_journal(run("run", asked)).steps[1:]]
    assert [record.error is not None for record in records] == [False, True, False, False]
    assert [record.batch_first_step is not None for record in records] == [False, False, True, True]


def test_a_study_that_stopped_is_not_begun_again(run):
    stop = dict(guard=dict(max_ppl_ratio=1 + 1e-9, action="stop"), single_batch_size=4)
    folder = run("run", **stop)
    before = (folder / "journal.jsonl").read_bytes()
    assert len(read_journal(folder).steps) == 2
    run("run", **stop)
    assert (folder / "journal.jsonl").read_bytes() == before
