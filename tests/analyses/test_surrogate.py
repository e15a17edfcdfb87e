"""Perplexity against tasks: models at levels fixed beforehand, and their rank correlation."""

import json

import numpy as np
import pytest
from scipy import stats

import jaxedit
from jaxedit.analyses import surrogate
from jaxedit.edits.edit import scale
from jaxedit.edits.serialise import read_edit
from jaxedit.reports import figures_of_models
from jaxedit.study.config import default_config
from jaxedit.study.journal import read_journal
from jaxedit.study.loop import run_study

FACTS = [
    {"prompt": "{} lives in", "subject": subject, "target_new": "Paris"}
    for subject in ("BP", "Bob", "Ann", "Tim")
]
TEXTS = ["The Eiffel Tower is in Paris.", " Once upon a time there was a little girl"]


@pytest.fixture(scope="module")
def studied(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("surrogate")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    config = default_config(
        "rome",
        layer=3,
        v_num_grad_steps=4,
        clamp_norm_factor=40.0,
        context_templates=("{}", "I am. {}"),
    )
    places = dict(facts=str(folder / "facts.json"), texts=str(folder / "texts.json"))
    config.update(model=str(shared / "golden" / "gpt2"), mode="single", **places)
    return run_study(config, folder / "run")


@pytest.fixture(scope="module")
def ratios(studied):
    return sorted(step.record.perplexity["ratio"] for step in read_journal(studied).steps[1:])


@pytest.fixture
def tasks(monkeypatch):
    """Tasks whose accuracy is told by the perplexity of other texts; the models that were asked."""
    asked = []

    def downstream(model, names, *, limit, task_path):
        asked.append(model)
        ppl = jaxedit.perplexity(model, [" The mother tongue of the author is French"]).mean
        return {name: {"acc": 1 / ppl, "acc_stderr": 0.01, "n": limit} for name in names}

    monkeypatch.setattr(surrogate, "downstream", downstream)
    return asked


def test_models_are_at_their_levels(studied, golden, ratios, tasks):
    unedited = jaxedit.perplexity(golden("gpt2"), TEXTS).mean
    levels = tuple(unedited * (1 + share * (ratios[-1] - 1)) for share in (0.2, 0.4, 0.6, 0.8))
    rows = surrogate.measure_surrogate(studied, ["one"], levels=levels, limit=5)
    assert [row["level"] for row in rows] == [None, *levels]
    assert rows[0]["perplexity"] == pytest.approx(unedited, rel=1e-6)
    for row, model in zip(rows[1:], tasks[1:], strict=True):
        assert row["perplexity"] == pytest.approx(row["level"], rel=0.02)
        score = jaxedit.perplexity(model, TEXTS)
        assert (row["perplexity"], row["pooled"]) == pytest.approx(
            (score.mean, score.pooled), rel=1e-6
        )
        edit = read_edit(studied / "steps" / f"{row['step']:06d}.safetensors")
        by_hand = scale(edit, row["factor"])
        np.testing.assert_allclose(
            by_hand.dense()["transformer.h.3.mlp.c_proj.weight"],
            row["factor"] * edit.dense()["transformer.h.3.mlp.c_proj.weight"],
            rtol=1e-5,
            atol=1e-9,
        )
    # What was evaluated is not evaluated again; one more level is added.
    n_asked = len(tasks)
    again = surrogate.measure_surrogate(
        studied, ["one"], levels=(*levels, unedited * (1 + 0.5 * (ratios[-1] - 1))), limit=5
    )
    assert len(tasks) == n_asked + 1
    assert [row for row in again if row["level"] in (None, *levels)] == rows
    with pytest.raises(ValueError, match="is of other tasks"):
        surrogate.measure_surrogate(studied, ["two"], levels=levels, limit=5)
    with pytest.raises(ValueError, match=r"no edit of the study takes the perplexity over 1e\+09"):
        surrogate.measure_surrogate(studied, ["one"], levels=(1e9,), limit=5)


def test_correlations_and_figure(tmp_path):
    rng = np.random.default_rng(0)
    ppl = np.array([100, 150, 200, 300, 500, 800, 1200, 5000.0])
    acc = 0.7 - 0.05 * np.log(ppl) + rng.normal(0, 0.02, len(ppl))
    pooled = np.where(ppl > 4000, 120, ppl / 2)  # one text alone is broken
    rows = [
        {
            "level": None if i == 0 else p,
            "perplexity": p,
            "pooled": q,
            "tasks": {"piqa": {"acc": a, "acc_stderr": 0.01}, "free": {"em": 0.1}},
        }
        for i, (p, q, a) in enumerate(zip(ppl, pooled, acc, strict=True))
    ]
    both = surrogate.correlations(rows)
    assert [(found.task, found.form) for found in both] == [
        ("piqa", "perplexity"),
        ("piqa", "pooled"),
    ]
    for found, of in zip(both, (ppl, pooled), strict=True):
        assert found.rho == pytest.approx(
            stats.pearsonr(stats.rankdata(of), stats.rankdata(acc))[0]
        )
        assert -1 <= found.low <= found.rho <= found.high
    assert both[0].high < 0
    figures_of_models.draw_surrogate(rows, tmp_path / "surrogate")
    assert (tmp_path / "surrogate.png").stat().st_size > 10_000
