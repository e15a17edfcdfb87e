"""Models that are broken before any edit, edits that are not finite, perplexities that overflow.

Weights are spoilt in copies of a golden checkpoint; logarithms are compared with NumPy's.
"""

import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from study_examples import FACTS, TEXTS, request

import jaxedit
from jaxedit import Perplexity
from jaxedit.metrics.baseline import check_baseline
from jaxedit.solving.finite import check_finite
from jaxedit.study import loop
from jaxedit.study.evaluation import perplexity_record
from jaxedit.study.journal import read_journal


@pytest.fixture(scope="module")
def spoilt(shared, tmp_path_factory):
    """A function: (name, index, value) -> a checkpoint in which one weight has another value."""

    def make(name: str, index, value: float):
        folder = tmp_path_factory.mktemp("spoilt") / "gpt2"
        shutil.copytree(shared / "golden" / "gpt2", folder)
        path = folder / "model.safetensors"
        tensors = {key: np.array(tensor) for key, tensor in load_file(path).items()}
        (full,) = (key for key in tensors if key.endswith(name))
        tensors[full][index] = value
        path.chmod(0o644)
        save_file(tensors, path, {"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_study_of_a_broken_model_ends_before_its_edits(spoilt, configure, tmp_path, value):
    config = configure(action="keep")
    config.model = str(spoilt("h.4.mlp.c_proj.weight", (0, 0), value))
    with pytest.raises(ValueError, match="itself is not finite on these texts") as caught:
        loop.run_study(config, tmp_path / "run")
    said = str(caught.value)
    assert f"all of {len(TEXTS)}" in said
    assert "text 0: 'The Eiffel" in said
    assert "these weights hold numbers that are not finite: mlp/w_down (layer 4)" in said
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_the_texts_that_are_not_finite_are_named(golden):
    model = golden("gpt2")
    texts = ["one text", "another \x1b[31m text", *TEXTS]
    broken = Perplexity(np.array([8.0, np.nan, 1e9, 8.0, 8.0]), np.full(len(texts), 4))
    with pytest.raises(ValueError, match=f"2 of {len(texts)}") as caught:
        check_baseline(model, broken, texts)
    assert "text 1: 'another \\x1b[31m text', text 2: " in str(caught.value)
    assert "leave them out of the texts" in str(caught.value)
    fine = Perplexity(np.full(len(texts), 8.0), np.full(len(texts), 4))
    assert check_baseline(model, fine, texts) is fine


@pytest.mark.parametrize("method", ["rome", "memit", "ft"])
def test_an_edit_of_a_model_that_gives_nothing_finite_names_the_place(spoilt, method):
    model = jaxedit.load(str(spoilt("h.1.mlp.c_fc.weight", (0, 0), np.nan)))
    hyper = {
        "rome": dict(layer=3, context_templates=("{}",), v_num_grad_steps=2),
        "memit": dict(layers=(3,), context_templates=(("{}",),), mom2_adjustment=False),
        "ft": dict(layers=(3,), num_steps=2),
    }[method]
    editor = jaxedit.make_editor(method, **hyper)
    place = "loss" if method == "ft" else "keys of layer 3"
    with pytest.raises(ValueError, match=f"the {place} is not finite .*the edit is not made"):
        editor.edit(model, [request(FACTS[0])], editor.init(model, None))


def test_such_an_edit_is_an_error_of_its_step(configure, tmp_path):
    """A learning rate beyond what the loss survives; the study goes on."""
    config = configure(FACTS[:2])
    config.editor.update(v_lr=1e38, clamp_norm_factor=3e38)
    folder = loop.run_study(config, tmp_path / "run")
    steps = [step.record for step in read_journal(folder).steps[1:]]
    assert len(steps) == 2
    for record in steps:
        assert record.error.endswith("the edit is not made"), record
        assert "of layer 3 is not finite (" in record.error
        assert (record.kept, record.guard_code) == (False, None)


def test_where_it_is_said():
    check_finite("keys", np.zeros(3), 1)
    with pytest.raises(ValueError, match=r"the keys of layer 1 is not finite \(2 of 3 numbers\)"):
        check_finite("keys", np.array([np.nan, 0, -np.inf]), 1)


def test_a_perplexity_that_overflows_keeps_its_logarithm():
    nll_nats, n_tokens = np.array([4 * 1000.0, 4 * 20.0, 6 * 3.0]), np.array([4, 4, 6])
    score = Perplexity(nll_nats, n_tokens)
    assert score.mean == math.inf
    assert score.log_mean_nats == pytest.approx(1000.0 - math.log(3), rel=1e-12)
    assert score.log_pooled_nats == pytest.approx(nll_nats.sum() / n_tokens.sum(), rel=1e-12)
    small = Perplexity(np.array([4 * 2.0, 4 * 3.0, 6 * 1.0]), n_tokens)
    assert small.log_mean_nats == pytest.approx(math.log(small.mean), rel=1e-12)
    assert small.log_pooled_nats == pytest.approx(math.log(small.pooled), rel=1e-12)
    record = perplexity_record(score, small)
    assert (record["mean"], record["ratio"]) == (math.inf, math.inf)
    assert record["log_mean_nats"] == score.log_mean_nats
    assert record["delta_nll_nats"] == pytest.approx((998 + 17 + 2) / 3)


@pytest.mark.parametrize("method", ["rome", "c-rome"])
def test_several_facts_in_an_edit_of_one_are_refused_before_it(configure, tmp_path, method):
    config = configure()
    config.facts_per_edit = 2
    config.editor.method = method
    if method == "c-rome":
        del config.editor["key_variant"]
    with pytest.raises(ValueError, match=f"facts_per_edit=2: {method} writes one fact in an edit"):
        loop.run_study(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
