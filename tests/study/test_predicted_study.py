"""A study journals the predicted change of the loss: of an edit, or of all kept ones together."""

import dataclasses
import json

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import read_edit
from jaxedit.edits.predicted_change import predict_change, predict_total_change
from jaxedit.metrics.perplexity import prepare
from jaxedit.models.loss_probe import read_loss_probe
from jaxedit.models.model import allocate_deltas
from jaxedit.reports.figures import damage_prediction_figure
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
    for subject in ("BP", "Bob", "Ann", "Tim")
]
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]
PLACES = (("mlp/w_down", 3),)


@pytest.fixture
def run(study_config, tmp_path):
    """Make a function: (**keys) -> the journal of a study with three draws."""

    def make(n_draws=3, **keys):
        hyper = dict(layer=3, context_templates=("{}",), v_num_grad_steps=4)
        evaluation = dict(prediction_draws=n_draws)
        keep = dict(action="keep")
        config = study_config("rome", FACTS, TEXTS, hyper, evaluation, guard=keep, **keys)
        return read_journal(run_study(config, tmp_path / "run"))

    return make


def predicted(journal):
    return [step.record.predicted_change for step in journal.steps[1:]]


def as_journalled(found, model):
    base = jaxedit.perplexity(model, TEXTS)
    moved = np.exp(base.mean_nll + found.per_text())
    return pytest.approx(
        {
            "mean_nats": found.mean_nats(),
            "stderr_nats": found.stderr_nats(),
            "first_nats": np.mean(found.first_nats),
            "second_nats": np.mean(found.second_nats),
            "curvature_share": 0.7,
            "gradients_step": 0,
            "log_ratio_nats": np.log(np.mean(moved) / np.mean(base.per_text)),
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_of_single_edits_it_is_each_edits_own(run, golden, batch):
    journal = run(mode="single", single_batch_size=batch)
    probe = read_loss_probe(golden("gpt2"), prepare(golden("gpt2"), TEXTS, False, 3), PLACES, 3)
    for step, found in zip(journal.steps[1:], predicted(journal), strict=True):
        assert found == as_journalled(predict_change(probe, read_edit(step.arrays)), golden("gpt2"))


def test_of_a_sequence_it_is_that_of_all_kept_edits(run, golden):
    journal = run()
    base = allocate_deltas(golden("gpt2"), "mlp/w_down", (3,))
    probe = read_loss_probe(base, prepare(base, TEXTS, False, 3), PLACES, 3)
    for number, found in enumerate(predicted(journal), start=1):
        edited = jaxedit.edited_model(journal.folder, after_step=number)
        assert found == as_journalled(predict_total_change(probe, base, edited), base)


def test_the_report_ranks_edits_by_it(run):
    journal = run(mode="single")
    text = jaxedit.open_study(journal.folder).report().read_text()
    assert "| predicted change of the loss | " in text


def test_edits_that_are_predicted_to_help_are_drawn_too(run):
    """A change has a sign, which a logarithmic axis has not."""
    records = [step.record for step in run(mode="single").steps[1:]]
    signed = [
        dataclasses.replace(record, predicted_change={"mean_nats": value})
        for record, value in zip(records, (-0.02, -0.01, 0.0, 0.3), strict=True)
    ]
    figure = damage_prediction_figure(signed)
    assert figure is not None
    axes = figure.axes[-1]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("predicted change of the loss", "symlog")
    drawn = sorted(x for line in axes.lines for x in line.get_xdata())
    assert drawn == [-0.02, -0.01, 0.0, 0.3]


def test_without_draws_nothing_is_predicted(run):
    journal = run(n_draws=0)
    assert predicted(journal) == [None] * len(FACTS)
    lines = (journal.folder / "journal.jsonl").read_text().splitlines()
    assert not any("predicted_change" in json.loads(line) for line in lines)


def test_a_negative_number_of_draws_is_refused(run):
    with pytest.raises(ValueError, match=r"eval.prediction_draws=-1: expected a number of draws"):
        run(n_draws=-1)
