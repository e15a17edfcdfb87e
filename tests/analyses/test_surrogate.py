"""Perplexity against tasks: models at levels fixed beforehand, and their rank correlation."""

import json
import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

import jaxedit
from jaxedit.analyses import surrogate
from jaxedit.edits.edit import read_edit, scale_edit
from jaxedit.study.config import default_config
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
    for subject in ("BP", "Bob", "Ann", "Tim")
]
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]
OTHER_TEXTS = [" The mother tongue of the author is French"]
WEIGHT = "transformer.h.3.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def studied(shared, tmp_path_factory):
    """Run a study of single edits; return its folder."""
    folder = tmp_path_factory.mktemp("surrogate")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    hyper = dict(v_num_grad_steps=4, clamp_norm_factor=40.0, context_templates=("{}", "I am. {}"))
    config = default_config("rome", layer=3, **hyper)
    places = dict(facts=str(folder / "facts.json"), texts=str(folder / "texts.json"))
    config.update(model=str(shared / "golden" / "gpt2"), mode="single", **places)
    return run_study(config, folder / "run")


@pytest.fixture(scope="module")
def levels(studied):
    """Return perplexities between the unedited model's and that of the most damaging edit."""
    unedited, *edited = (step.record.perplexity["mean"] for step in read_journal(studied).steps)
    return tuple(unedited + share * (max(edited) - unedited) for share in (0.2, 0.4, 0.6, 0.8))


class Measurement(NamedTuple):
    """The rows of a measurement, and the models that tasks were evaluated on."""

    rows: list
    models: list


@pytest.fixture(scope="module")
def evaluated():
    """Replace the tasks by one whose accuracy is told by the perplexity of other texts.

    Return the list of the models that were evaluated.
    """
    models = []

    def evaluate_tasks(model, names, *, limit, task_path):
        models.append(model)
        ppl = jaxedit.perplexity(model, OTHER_TEXTS).mean
        return {name: {"acc": 1 / ppl, "acc_stderr": 0.01, "n": limit} for name in names}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate, "evaluate_tasks", evaluate_tasks)
        yield models


@pytest.fixture(scope="module")
def measured(studied, levels, evaluated):
    """Measure four levels, once."""
    rows = surrogate.measure_surrogate(studied, ["one"], levels=levels, limit=5)
    return Measurement(rows, list(evaluated))


def test_a_row_for_the_unedited_model_and_one_a_level(golden, levels, measured):
    assert [row["level"] for row in measured.rows] == [None, *levels]
    unedited = jaxedit.perplexity(golden("gpt2"), TEXTS)
    first = measured.rows[0]
    found = first["perplexity"], first["pooled"]
    assert found == pytest.approx((unedited.mean, unedited.pooled), rel=1e-6)
    assert (first["step"], first["factor"]) == (0, 0)


def test_models_are_at_their_levels(measured):
    for row, model in zip(measured.rows[1:], measured.models[1:], strict=True):
        assert row["perplexity"] == pytest.approx(row["level"], rel=0.02)
        score = jaxedit.perplexity(model, TEXTS)
        found = row["perplexity"], row["pooled"]
        assert found == pytest.approx((score.mean, score.pooled), rel=1e-6)


def test_a_row_holds_what_the_tasks_say_of_its_model(measured):
    for row, model in zip(measured.rows, measured.models, strict=True):
        accuracy = 1 / jaxedit.perplexity(model, OTHER_TEXTS).mean
        assert row["tasks"]["one"]["acc"] == pytest.approx(accuracy)
        assert row["tasks"]["one"]["n"] == 5


def test_each_model_has_its_own_edit_scaled(studied, measured):
    steps = [row["step"] for row in measured.rows[1:]]
    assert len(set(steps)) > 1
    for row in measured.rows[1:]:
        edit = read_edit(studied / "steps" / f"{row['step']:06d}.safetensors")
        scaled = scale_edit(edit, row["factor"]).dense()[WEIGHT]
        expected = row["factor"] * edit.dense()[WEIGHT]
        np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-9)
        assert 0 < row["factor"] < 1


def test_what_was_evaluated_is_not_evaluated_again(studied, levels, measured, evaluated):
    n_before, seen = len(evaluated), []
    between = (levels[1] + levels[2]) / 2
    options = dict(levels=(*levels, between), limit=5, on_model=seen.append)
    rows = surrogate.measure_surrogate(studied, ["one"], **options)
    assert len(evaluated) == n_before + 1
    assert [row for row in rows if row["level"] != between] == measured.rows
    assert seen == rows


def test_rows_of_other_tasks_are_not_mixed(studied, levels, measured):
    with pytest.raises(ValueError, match="is of other tasks"):
        surrogate.measure_surrogate(studied, ["two"], levels=levels, limit=5)


def test_a_level_that_no_edit_reaches_is_refused(studied, measured):
    with pytest.raises(ValueError, match=r"no edit of the study takes the perplexity over 1e\+09"):
        surrogate.measure_surrogate(studied, ["one"], levels=(1e9,), limit=5)


def test_there_are_fourteen_levels():
    expected = "200 250 300 350 400 450 500 600 700 800 900 1000 2000 5000"
    assert " ".join(f"{level:g}" for level in surrogate.LEVELS) == expected


@pytest.fixture(scope="module")
def models():
    """Make models whose accuracy falls with the logarithm of the perplexity."""
    rng = np.random.default_rng(0)
    rows = []
    for i, ppl in enumerate([100, 150, 200, 300, 500, 800, 1200, 5000.0]):
        accuracy = 0.7 - 0.05 * math.log(ppl) + rng.normal(0, 0.02)
        tasks = {"piqa": {"acc": accuracy, "acc_stderr": 0.01}, "free": {"em": 0.1}}
        pooled = 120 if ppl > 4000 else ppl / 2  # one text alone is broken
        level = ppl if i else None
        rows.append({"level": level, "perplexity": ppl, "pooled": pooled, "tasks": tasks})
    return rows


@pytest.mark.parametrize("form", ["perplexity", "pooled"])
def test_correlation_is_that_of_ranks(form, models):
    (found,) = [each for each in surrogate.correlations(models) if each.form == form]
    ranks = [
        stats.rankdata([row[form] for row in models]),
        stats.rankdata([row["tasks"]["piqa"]["acc"] for row in models]),
    ]
    assert found.task == "piqa"
    assert found.rho == pytest.approx(stats.pearsonr(*ranks)[0])
    assert -1 <= found.low <= found.rho <= found.high <= 1


def test_the_interval_of_a_clear_correlation_lies_on_one_side_of_none(models):
    assert surrogate.correlations(models)[0].high < 0


def test_only_tasks_that_have_the_metric_are_correlated(models):
    assert surrogate.tasks_with(models) == ["piqa"]
    assert surrogate.tasks_with(models, "em") == ["free"]
    assert [each.task for each in surrogate.correlations(models)] == ["piqa", "piqa"]


def test_fewer_than_four_models_have_no_correlation(models):
    assert surrogate.correlations(models[:3]) == []


def test_a_level_that_no_factor_meets_is_refused(studied, golden, monkeypatch):
    """Where the perplexity leaps over the level the last factor tried is not passed off as it."""
    step = read_journal(studied).steps[1]
    leaps = iter([10.0, 1000.0] * surrogate.TRIALS)
    score = jaxedit.perplexity(golden("gpt2"), TEXTS)

    class Leaping:
        def __init__(self):
            self.mean, self.pooled = next(leaps), score.pooled

    monkeypatch.setattr(surrogate, "perplexity", lambda model, texts: Leaping())
    with pytest.raises(ValueError, match="edit 1 does not take the perplexity to 100"):
        surrogate.scale_to_perplexity(golden("gpt2"), read_edit(step.arrays), 100.0, TEXTS, 1)


def test_perplexities_that_are_not_finite_are_numbers_when_read_again(studied, levels, measured):
    path = studied / "surrogate.json"
    content = path.read_text(encoding="utf-8")
    rows = json.loads(content)
    rows["models"][1]["pooled"] = "inf"
    del rows["digest"]  # as an older version wrote it
    path.write_text(json.dumps(rows), encoding="utf-8")
    try:
        again = surrogate.measure_surrogate(studied, ["one"], levels=levels, limit=5)
        assert again[1]["pooled"] == float("inf")
    finally:
        path.write_text(content, encoding="utf-8")
