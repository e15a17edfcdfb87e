"""The record: through JSON and back, without what was not measured, and without unknown keys."""

import dataclasses
import json

import pytest

from jaxedit.files import to_json
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.study.record import StepRecord

RECORD = StepRecord(
    step=3,
    case_id="inf",
    prompt="{} is in",
    subject="nan",
    target_new="Rome",
    n_requests=2,
    kept=False,
    guard_code="non_finite_loss",
    guard_reason="the loss of 1 texts is not finite",
    perplexity=dict(mean=float("inf"), pooled=3.5, ratio=float("inf"), n_non_finite=1),
    metrics={"probability_new": 0.25, "efficacy_success": None, "efficacy_accuracy": True},
    continuation=" inf",
    prompt_continuations=["inf", "nan"],
    optimisation={"loss": float("-inf"), "n_steps": 20},
    edit_norm=2.5,
    retention={"1": {"probability_new": float("inf")}},
    time_s={"edit": 0.5},
)


def through_json(record: StepRecord) -> StepRecord:
    return StepRecord.from_dict(json.loads(json.dumps(to_json(record.to_dict()))))


def test_numbers_that_are_not_finite_come_back_as_numbers_and_texts_as_texts():
    again = through_json(RECORD)
    assert again == RECORD
    assert (again.case_id, again.subject, again.continuation) == ("inf", "nan", " inf")
    assert again.perplexity["mean"] == float("inf")
    assert again.prompt_continuations == ["inf", "nan"]


def test_what_was_not_measured_is_not_written():
    written = StepRecord(step=1, kept=True, kl_nats=0.0).to_dict()
    assert written == {"kind": "step", "step": 1, "kept": True, "kl_nats": 0.0}
    assert through_json(StepRecord(kind="baseline", step=0)).kept is None


def test_a_key_of_another_schema_is_refused():
    with pytest.raises(ValueError, match=r"the unknown key 'fact'; known: .*metrics"):
        StepRecord.from_dict({"step": 1, "fact": {}})
    with pytest.raises(ValueError, match="no number under 'step'"):
        StepRecord.from_dict({"kind": "step"})


def test_an_edit_that_was_skipped_or_failed_is_not_made():
    assert RECORD.is_made
    assert not dataclasses.replace(RECORD, skipped="screening").is_made
    assert not dataclasses.replace(RECORD, error="too long").is_made
    assert not StepRecord(kind="baseline", step=0).is_made


def test_a_batch_is_named_by_its_first_request():
    assert RECORD.request_summary == "nan is in → Rome and 1 more"
    assert dataclasses.replace(RECORD, n_requests=1).request_summary == "nan is in → Rome"


def test_every_field_is_described():
    described = StepRecord.__doc__ or ""
    missing = [
        f.name for f in dataclasses.fields(StepRecord) if f"\n      {f.name}" not in described
    ]
    named_with_others = ["prompt", "subject", "target_new", "target_true"]
    assert [name for name in missing if name not in named_with_others] == []


def test_the_journals_metrics_are_those_of_the_metric(golden):
    """One list of names: what is measured of a fact is what a record's metrics hold."""
    from jaxedit import Request
    from jaxedit.metrics.facts import FactMetrics

    (metrics,) = evaluate_facts(golden("gpt2"), [Request("{} lives in", "Bob", "Paris")])
    assert set(metrics) == set(FactMetrics.__annotations__)
