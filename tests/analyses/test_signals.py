"""Signals of a sequence and the tasks' fall: against dense NumPy, and lists written by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from jaxedit.analyses.signals import (
    LIMITS,
    Signals,
    StudySignals,
    evaluated_steps,
    fall_between,
    hyperspherical_energy,
    leads,
    read_signals,
)
from jaxedit.edits.weights import base_weight
from jaxedit.reports.signals_figure import signals_figure
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
    for subject in ("BP", "Bob", "Ann")
]
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]


@pytest.fixture(scope="module")
def journal(study_config, tmp_path_factory):
    """Three edits in sequence; the second one is rolled back by hand."""
    hyper = dict(layer=3, context_templates=("{}",), v_num_grad_steps=3)
    evaluation = dict(prediction_draws=2, kl_every=1)
    config = study_config("rome", FACTS, TEXTS, hyper, evaluation, guard=dict(action="keep"))
    return read_journal(run_study(config, tmp_path_factory.mktemp("signals") / "run"))


@pytest.fixture(scope="module")
def found(journal):
    return read_signals(journal)


def updates(journal):
    return [step.read_edit().dense() for step in journal.steps[1:]]


def test_every_signal_is_there_after_every_edit(found):
    assert [each.step for each in found] == [1, 2, 3]
    assert set(found[0].values) == set(LIMITS) - {"cosine"}
    assert set(found[2].values) == set(LIMITS)


def test_those_of_the_journal(journal, found):
    unedited = journal.steps[0].record.perplexity
    for step, each in zip(journal.steps[1:], found, strict=True):
        record, values = step.record, each.values
        assert values["perplexity"] == pytest.approx(record.perplexity["ratio"])
        for key in ("pooled", "median"):
            expected = record.perplexity[key] / unedited[key]
            assert values[f"{key} perplexity"] == pytest.approx(expected)
        assert values["KL"] == record.kl_nats
        assert values["predicted change"] == record.predicted_change["log_ratio_nats"]
        assert values["relative perturbation"] == record.total_relative_perturbation


def test_those_of_the_weights(journal, found, golden):
    """Against sums of whole matrices in float64."""
    base_FD = base_weight(golden("gpt2"), "mlp/w_down", 3).astype(float)
    total_FD, previous_FD, energy = np.zeros_like(base_FD), None, energy_of(base_FD)
    for update, each in zip(updates(journal), found, strict=True):
        (update_FD,) = update.values()
        total_FD += update_FD
        norm = np.linalg.norm(total_FD) / np.linalg.norm(base_FD)
        assert each.values["norm"] == pytest.approx(norm, rel=1e-5)
        expected = abs(energy_of(base_FD + total_FD) / energy - 1)
        assert each.values["hyperspherical energy"] == pytest.approx(expected, rel=1e-3)
        if previous_FD is not None:
            cosine = np.sum(previous_FD * update_FD) / (
                np.linalg.norm(previous_FD) * np.linalg.norm(update_FD)
            )
            assert each.values["cosine"] == pytest.approx(abs(cosine), rel=1e-4)
        previous_FD = update_FD


def energy_of(weight_FD):
    neurons = [column / np.linalg.norm(column) for column in np.asarray(weight_FD, float).T]
    pairs = itertools.permutations(neurons, 2)
    return sum(1 / np.linalg.norm(one - other) for one, other in pairs)


def test_the_energy_of_two_orthogonal_neurons():
    """Two ordered pairs at a distance of the root of 2; lengths do not count."""
    assert hyperspherical_energy(np.diag([3.0, 0.5])) == pytest.approx(2 / math.sqrt(2))


def rows(*accuracies, n=200):
    return [
        {"step": 20 * i, "tasks": {"a": {"acc": a, "n": n}, "b": {"acc": 0.5, "n": n}}}
        for i, a in enumerate(accuracies)
    ]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((0.6, 0.6, 0.6, 0.3, 0.2), (40, 60)),
        ((0.6, 0.3, 0.6, 0.6), None),  # it came back
        ((0.6, 0.3, 0.6, 0.4), (40, 60)),
        ((0.6, 0.2), (0, 20)),
        ((0.6, 0.55, 0.52), None),  # 0.08 is under two standard errors of 0.05
        ((0.6, 0.6, 0.49), (20, 40)),
    ],
)
def test_a_task_falls_where_it_stays_below_chance(accuracies, expected):
    assert fall_between(rows(*accuracies)) == expected


def test_tasks_are_evaluated_twice_more_where_they_fall():
    assert evaluated_steps(50, 20) == [0, 20, 40, 50]
    assert evaluated_steps(100, 20, (40, 60)) == [0, 20, 40, 46, 53, 60, 80, 100]


def test_leads_are_counted_from_the_fall():
    found = [
        Signals(step, {"perplexity": 1.0 + 0.02 * step, "KL": 0.0, "norm": 0.3 * step})
        for step in range(1, 11)
    ]
    evaluated = [row | {"step": row["step"] // 5} for row in rows(0.6, 0.6, 0.2)]
    found = leads(StudySignals("one", found, evaluated))  # a task falls by edit 8
    named = {lead.signal: (lead.step, lead.n_before) for lead in found}
    assert named == {"norm": (4, 4), "perplexity": (6, 2), "KL": (None, None)}
    assert [lead.signal for lead in found] == ["norm", "perplexity", "KL"]


def test_without_tasks_nothing_falls():
    study = StudySignals("one", [Signals(1, {"norm": 2.0})])
    assert study.fall is None
    assert leads(study) == [("norm", LIMITS["norm"], 1, None)]


def test_what_is_drawn():
    found = [Signals(step, {"perplexity": 1 + 0.05 * step, "norm": 0.5 * step}) for step in (1, 4)]
    studies = [StudySignals("one", found, rows(0.6, 0.2)), StudySignals("two", found)]
    figure = signals_figure(studies)
    left, right, second = figure.axes  # a row a study; the second has no tasks
    for axes in (left, second):
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert drawn["perplexity"] == [[1.0, pytest.approx(0.5)], [4.0, pytest.approx(2.0)]]
        assert drawn["norm"] == [[1.0, 0.5], [4.0, 2.0]]
        assert {"perplexity", "norm"} <= {text.get_text() for text in axes.texts}
    assert [0.6, 0.2] in [np.asarray(line.get_ydata()).tolist() for line in right.lines]
    assert {"a", "b"} <= {text.get_text() for text in right.texts}
    assert [20, 20] in [np.asarray(line.get_xdata()).tolist() for line in right.lines]  # the fall
    assert [axes.get_title(loc="left") for axes in (left, second)] == ["one", "two"]


def test_single_edits_are_refused(journal):
    run = {**journal.run, "config": {**journal.run["config"], "mode": "single"}}
    with pytest.raises(ValueError, match="expected a sequence whose edits are journalled one by"):
        read_signals(dataclasses.replace(journal, run=run))


def test_what_holds_no_edit_or_begins_with_others_is_refused(journal):
    begun = dataclasses.replace(journal, steps=journal.steps[:1])
    with pytest.raises(ValueError, match="holds no edit yet; run the study first"):
        read_signals(begun)
    config = {**journal.run["config"], "start": {"run": "runs/other", "edit": ""}}
    with pytest.raises(ValueError, match="begins with edits of another"):
        read_signals(dataclasses.replace(journal, run={**journal.run, "config": config}))
