"""Hyper-parameters: one declaration of each, and none that the optimisation loses."""

import dataclasses
import typing

import pytest

from jaxedit.editors import encore, memit, pmet, rome
from jaxedit.solving.hyper import MultiLayerHyper, RankOneHyper, TargetHyper, ValueHyper

SWITCHES = {
    "nll_loss_factor": 1.0,
    "prob_cutoff": None,
    "prob_cutoff_count": "all_templates",
    "reduce_nll_when_correct": False,
}
HYPERS = [rome.Hyper, memit.Hyper, encore.Hyper, pmet.Hyper]


def names(hyper: type) -> set[str]:
    return {field.name for field in dataclasses.fields(hyper)}


@pytest.mark.parametrize("hyper", [ValueHyper, RankOneHyper, MultiLayerHyper, *HYPERS])
def test_a_method_has_every_field_of_the_optimisation(hyper):
    assert issubclass(hyper, TargetHyper)
    assert names(TargetHyper) <= names(hyper)


def test_shared_fields_are_declared_once():
    for hyper in (ValueHyper, RankOneHyper):
        assert not set(hyper.__annotations__) & set(TargetHyper.__annotations__)
    assert set(MultiLayerHyper.__annotations__) & set(TargetHyper.__annotations__) == {
        "clamp_norm_factor"  # published with another default
    }


def test_published_defaults():
    assert dataclasses.asdict(TargetHyper()) == {
        "v_num_grad_steps": 20,
        "v_lr": 0.5,
        "v_weight_decay": 0.5,
        "kl_factor": 0.0625,
        "clamp_norm_factor": 4.0,
        "keep_unedited_norm": False,
        "leading_space": "joined",
        "fact_token": "subject_last",
    }
    assert RankOneHyper().clamp_norm_factor == 4.0
    assert MultiLayerHyper().clamp_norm_factor == 0.75


@pytest.mark.parametrize(
    ("hyper", "own"),
    [
        (rome.Hyper, {}),
        (memit.Hyper, {}),
        (encore.Hyper, {"prob_cutoff": -1, "prob_cutoff_count": "all_templates"}),
        (pmet.Hyper, {"nll_loss_factor": 1.0, "reduce_nll_when_correct": True}),
    ],
)
def test_switches_are_fields_only_of_the_methods_that_have_them(hyper, own):
    assert names(hyper) & set(SWITCHES) == set(own)
    settings = hyper().target_settings()
    assert {name: settings[name] for name in SWITCHES} == SWITCHES | own


@pytest.mark.parametrize("hyper", HYPERS)
def test_target_settings_are_all_that_the_optimisation_reads(hyper):
    settings = hyper().target_settings()
    assert set(settings) == names(TargetHyper) | set(SWITCHES)
    kinds = typing.get_type_hints(hyper)
    for name in names(hyper) & set(settings):
        kind = kinds[name]
        other = {bool: not settings[name], str: "other"}.get(kind, -7)
        changed = dataclasses.replace(hyper(), **{name: other}).target_settings()
        assert changed == settings | {name: other}


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        (TargetHyper(v_num_grad_steps=0), "v_num_grad_steps=0"),
        (TargetHyper(v_lr=0.0), "v_lr=0.0"),
        (TargetHyper(clamp_norm_factor=-1.0), "clamp_norm_factor=-1.0"),
        (pmet.Hyper(nll_loss_factor=0.0), "nll_loss_factor=0.0: expected a positive number"),
        (encore.Hyper(prob_cutoff=1), "prob_cutoff=1: expected -k"),
        (encore.Hyper(prob_cutoff=0), "prob_cutoff=0: expected -k"),
        (encore.Hyper(prob_cutoff_count="5"), "prob_cutoff_count=.5.: expected .all_templates."),
        (TargetHyper(leading_space="no"), "leading_space='no'"),
        (TargetHyper(fact_token="first"), "fact_token='first'"),
    ],
)
def test_numbers_that_cannot_be_meant(hyper, message):
    with pytest.raises(ValueError, match=message):
        hyper.check_target()


def test_one_update_and_no_weight_decay_can_be_meant():
    smallest = TargetHyper(v_num_grad_steps=1, v_weight_decay=0.0, kl_factor=0.0)
    smallest.check_target()
    assert smallest.target_settings()["v_num_grad_steps"] == 1
    with pytest.raises(ValueError, match="v_num_grad_steps=0"):
        dataclasses.replace(smallest, v_num_grad_steps=0).check_target()
