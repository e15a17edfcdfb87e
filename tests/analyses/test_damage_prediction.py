"""How well damage was foreseen: rank statistics against their definitions, pair by pair."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxedit.analyses.damage_prediction import damage_predictors
from jaxedit.reports.figures import draw_damage_prediction
from jaxedit.reports.markdown import damage_prediction_lines


def records(n=40, seed=0):
    """Edits whose damage follows their push with some noise; a third are damaging, a few collapse."""
    rng = np.random.default_rng(seed)
    push_N = np.exp(rng.normal(-3, 1.5, n))
    change_N = 8 * push_N * np.exp(rng.normal(0, 0.8, n))
    return [
        {
            "predicted": push * 1.1,
            "relative_perturbation": push,
            "editor": {"denominator": 1 / push},
            "perplexity": {
                "mean": 100 * math.exp(change),
                "ratio": math.exp(change),
                "delta_nll_nats": change,
            },
        }
        for push, change in zip(push_N.round(2) + 0.001, change_N, strict=True)
    ]


def test_the_statistics():
    steps = records()
    found = damage_predictors(steps)
    assert [each.name for each in found] == [
        "predicted before the edit",
        "relative perturbation",
        "1 / |u·k|",
    ]
    each = found[1]
    value, change = each.value, each.change_nats
    bad = [i for i, step in enumerate(steps) if step["perplexity"]["ratio"] > 1.1]
    good = [i for i in range(len(steps)) if i not in bad]
    assert 3 < len(bad) < len(steps) - 3
    above = [
        (value[b] > value[g]) + (value[b] == value[g]) / 2 for b, g in itertools.product(bad, good)
    ]
    assert each.auc == pytest.approx(np.mean(above))
    assert each.spearman == pytest.approx(
        stats.pearsonr(stats.rankdata(value), stats.rankdata(change))[0]
    )
    assert each.spearman_damaging == pytest.approx(
        stats.pearsonr(stats.rankdata(value[bad]), stats.rankdata(change[bad]))[0]
    )
    assert each.worst_share == sum(v >= min(value[bad]) for v in value) / len(value)
    assert 0.5 < each.auc < 1
    collapsed = [step["perplexity"]["mean"] > 1000 for step in steps]
    assert 0 < sum(collapsed) < len(bad)
    assert each.collapsing_in_top == collapsed[int(np.argmax(value))]  # a hundredth of forty is one


def test_of_a_sequence_what_all_its_edits_push_together():
    steps = [
        step | {"relative_perturbation_of_all": step["relative_perturbation"] ** 2}
        for step in records()
    ]
    (each,) = damage_predictors(steps, single=False)
    assert each.name == "relative perturbation of all edits"
    assert each.spearman == pytest.approx(
        damage_predictors(records())[1].spearman
    )  # the same ranks
    assert each.value.tolist() == [step["relative_perturbation"] ** 2 for step in steps]


def test_where_there_is_nothing_to_rank():
    assert damage_predictors(records(2)) == []
    quiet = [
        {**step, "perplexity": {"mean": 100, "ratio": 1.0, "delta_nll_nats": i / 1e3}}
        for i, step in enumerate(records())
    ]
    quiet[0].pop("predicted")
    found = damage_predictors([*quiet, {"error": "not possible"}])
    assert [each.name for each in found] == ["relative perturbation", "1 / |u·k|"]
    assert math.isnan(found[0].auc)
    assert math.isnan(found[0].spearman_damaging)
    assert "| – | 0 of 0 |" in "\n".join(damage_prediction_lines(quiet))


def test_the_figure(tmp_path):
    steps = records()
    steps[0]["perplexity"] |= {"mean": "inf", "ratio": "inf", "delta_nll_nats": "inf"}
    draw_damage_prediction(steps, tmp_path / "foresight")
    assert (tmp_path / "foresight.png").stat().st_size > 10_000
    assert (tmp_path / "foresight.pdf").read_bytes().startswith(b"%PDF")
    draw_damage_prediction(steps[:2], tmp_path / "none")
    assert not (tmp_path / "none.png").exists()
