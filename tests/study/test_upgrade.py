"""Journals of schema 0, written by version 3f169fe: read as of today, reported, and gone on with.

The folders in schema0/ are studies of the golden gpt2 by that version: `sequential` (a guard that
rolls back, a fact that is too long, retention, KL, fluency, prompts), `screened` (hard facts held
back) and `single` (single edits made one by one, whose KL is that of an edit applied twice).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxedit
from jaxedit.edits.edit import read_edit
from jaxedit.files import flatten_keys
from jaxedit.metrics.facts import evaluate_facts
from jaxedit.reports.markdown import write_report
from jaxedit.reports.studies import read_studies
from jaxedit.study.config import default_config
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study
from jaxedit.study.record import SCHEMA, StepRecord
from jaxedit.study.replay import edited_model
from jaxedit.study.upgrade import upgrade_line, upgrade_run

HERE = Path(__file__).parent / "schema0"
HYPER = dict(layer=3, v_num_grad_steps=4, context_templates=("{}", "I am. {}"))


@pytest.fixture
def old(shared, tmp_path, monkeypatch):
    """A function: name -> a copy of the folder; the model and files are where it says."""
    shutil.copytree(HERE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "MODEL").symlink_to(shared / "golden" / "gpt2", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return lambda name: tmp_path / name


def configuration(facts: str, n_facts: int, **keys):
    config = default_config("rome", **HYPER)
    config.update(model="MODEL", facts=facts, texts="texts.json", n_facts=n_facts, **keys)
    return config


def sequential(n_facts: int):
    """The configuration of `sequential`, in today's names."""
    evaluation = dict(kl_every=2, fluency_every=4, retention_every=2, prompts=("Once upon a time",))
    guard = dict(max_ppl_ratio=1.02, action="rollback")
    return configuration("facts.json", n_facts, guard=guard, eval=evaluation)


def test_every_line_says_the_same_under_todays_names(old):
    folder = old("sequential")
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    journal = read_journal(folder)
    assert journal.run["schema"] == SCHEMA
    baseline, *steps = [step.record for step in journal.steps]
    assert (baseline.kind, baseline.perplexity["n_non_finite"]) == ("baseline", 0)
    assert baseline.prompt_continuations == lines[0]["continuations"]
    assert [record.kind for record in steps] == ["step"] * 4
    for record, line in zip(steps, lines[1:], strict=True):
        assert (record.step, record.subject, record.kept) == (
            line["step"],
            line["subject"],
            line["kept"],
        )
        assert record.error == line.get("error")
        assert (record.guard_reason or "") == line["guard"]
        if record.error is not None:
            continue
        assert record.metrics["efficacy_accuracy"] == line["fact"]["greedy_new"]
        assert record.metrics["probability_new"] == line["fact"]["probability_new"]
        assert record.metrics["paraphrase_success"] == line["fact"]["paraphrase"]
        assert record.unedited_metrics["prefixed_success"] == line["before"]["prefixed"]
        assert record.continuation == line["says"]
        assert record.unedited_continuation == line["says_before"]
        assert record.optimisation == line["editor"]
        assert record.edit_norm_ratio == line["relative_norm"]
        assert record.total_relative_perturbation == line["relative_perturbation_of_all"]
        assert record.perplexity["ratio"] == line["perplexity"]["ratio"]
        assert record.kl_nats == line.get("divergence_nats")
        assert record.ngram_entropy_bits == line.get("fluency_bits")
    damaging = [record.step for record in steps if record.guard_code == "ppl_ratio"]
    assert damaging == [line["step"] for line in lines[1:] if line["guard"]] != []
    held = {name: each["greedy_new"] for name, each in lines[2]["retention"].items()}
    assert {n: each["efficacy_accuracy"] for n, each in steps[1].retention.items()} == held


def test_what_was_held_back_is_skipped_not_an_error(old):
    steps = [step.record for step in read_journal(old("screened")).steps[1:]]
    assert [record.skipped for record in steps] == [None, "screening", "screening"]
    assert [record.error for record in steps] == [None] * 3
    assert all(record.predicted_perturbation > 1.05 for record in steps[1:])


def test_what_was_measured_with_the_edit_twice_is_left_out(old, caplog):
    """The KL in the file is that of W + 2 delta; no number is read in its place."""
    folder = old("single")
    line = json.loads((folder / "journal.jsonl").read_text().splitlines()[2])
    record = read_journal(folder).steps[2].record
    assert line["divergence_nats"] > 0
    assert record.kl_nats is None
    assert record.perplexity["mean"] == line["perplexity"]["mean"]  # which was measured right
    assert "step 2, written by an older version, holds divergence_nats" in caplog.text


def test_the_whole_configuration_is_translated():
    run = upgrade_run(json.loads((HERE / "screened" / "run.json").read_text()))
    expected = configuration("short.json", 3, screening="skip").to_dict()
    expected["guard"].update(max_ppl_ratio=1e6, action="keep", max_relative_perturbation=1.05)
    expected["eval"].update(perplexity_every=2, bos=False)  # no older study scored otherwise
    as_json = json.loads(json.dumps(expected))
    assert run["config"] == as_json
    assert upgrade_run(run) == run


def test_a_line_of_today_is_as_it_is():
    line = StepRecord(step=3, kept=True, subject="BP", kl_nats=0.5).to_dict()
    assert upgrade_line(line, {"config": {"mode": "single"}}) == line


def test_an_old_folder_is_reported_and_gives_its_model(old, golden):
    folder = old("sequential")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = write_report(folder).read_text(encoding="utf-8")
    assert "| 4 |" in text
    assert "rolled back" in text
    steps = read_journal(folder).steps[1:]
    model = golden("gpt2")
    for step in steps:
        if step.record.kept:
            model = jaxedit.apply(model, read_edit(step.arrays))
    found = edited_model(folder)
    weight, layer = "mlp/w_down", 3
    for mine, theirs in zip(found.overlay.delta[weight], model.overlay.delta[weight], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert int(found.overlay.slot[weight][layer]) == 0
    (outcome,) = read_studies(folder.parent, (folder.name,))
    kept = [step.record for step in steps if step.record.kept]
    requests = [jaxedit.Request("{} lives in", r.subject, r.target_new) for r in kept]
    now = [facts["efficacy_accuracy"] for facts in evaluate_facts(found, requests)]
    assert [facts["efficacy_accuracy"] for facts in outcome.retained] == now
    for path, content in before.items():  # reading changes nothing
        assert path.read_bytes() == content


def test_an_old_folder_is_gone_on_with(old, tmp_path):
    """One fact more: the journal is the one of a study that this version made as a whole."""
    folder = old("sequential")
    arrays = {path.name: path.read_bytes() for path in (folder / "steps").iterdir()}
    seen = []
    run_study(sequential(5), folder, lambda record, total: seen.append(record.step))
    assert seen == [0, 1, 2, 3, 4, 5]
    assert json.loads((folder / "run.json").read_text())["schema"] == SCHEMA
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert all("kind" in line for line in lines)
    for name, content in arrays.items():
        assert (folder / "steps" / name).read_bytes() == content
    fresh = read_journal(run_study(sequential(5), tmp_path / "fresh"))
    for mine, theirs in zip(read_journal(folder).steps, fresh.steps, strict=True):
        a, b = (flatten_keys(step.record.to_dict()) for step in (mine, theirs))
        if mine.record.step < 5:  # older lines have neither logarithms nor medians
            newer = ("perplexity.log", "perplexity.median")
            b = {name: value for name, value in b.items() if not name.startswith(newer)}
        assert a.keys() == b.keys()
        if mine.record.ngram_entropy_bits is not None:  # then of longer texts, sentences not split
            assert a.pop("ngram_entropy_bits") > b.pop("ngram_entropy_bits") > 4.5
        for name in a:
            if not name.startswith("time_s"):
                assert a[name] == approximately(b[name]), (mine.record.step, name)


def test_a_study_without_a_limit_is_gone_on_with(old):
    """An infinite one was possible; the message says what stands for it."""
    folder = old("sequential")
    run = json.loads((folder / "run.json").read_text())
    run["config"]["guard"]["max_ppl_ratio"] = "inf"
    (folder / "run.json").write_text(json.dumps(run))
    config = sequential(5)
    config.guard.max_ppl_ratio = float("inf")
    with pytest.raises(ValueError, match="not inf; 1e\\+308 is never reached, and stands for"):
        run_study(config, folder)
    config.guard.max_ppl_ratio = 1e308
    run_study(config, folder)
    assert len(read_journal(folder).steps) == 6


def approximately(value):
    """The old numbers are another machine's: equal to rounding."""
    return pytest.approx(value, rel=1e-3, abs=1e-7) if isinstance(value, float) else value


def test_an_interruption_while_a_folder_is_upgraded_loses_nothing(old):
    """The journal is rewritten first: with run.json still old its lines are told by themselves."""
    folder = old("sequential")
    expected = [step.record for step in read_journal(folder).steps]
    run_json = (folder / "run.json").read_bytes()
    run_study(sequential(4), folder)
    (folder / "run.json").write_bytes(run_json)
    assert [step.record for step in read_journal(folder).steps] == expected
    seen = []
    run_study(sequential(4), folder, lambda record, total: seen.append(record))
    assert seen == expected


def test_a_journal_of_a_newer_version_is_refused(old):
    folder = old("single")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"schema": SCHEMA + 1}))
    with pytest.raises(ValueError, match=rf"schema {SCHEMA + 1}; .* reads 0 to {SCHEMA}\. A newer"):
        read_journal(folder)
