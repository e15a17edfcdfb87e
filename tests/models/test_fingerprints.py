"""The three fingerprints of a model: each changes with what it is of, and with nothing else."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from reference.checkpoints import edit_json

import jaxedit
from jaxedit.axes import PARAMETERS
from jaxedit.models import fingerprints
from jaxedit.models import model as models
from jaxedit.models.fingerprints import compare_fingerprints
from jaxedit.models.model import with_bos, with_overlay

NAMES = ("configuration", "tokenizer", "weights")


@pytest.fixture
def checkpoint(copy_of):
    """Copy a tiny checkpoint, to be changed."""
    return copy_of("llama")


def differing(first, again) -> set[str]:
    """Return the names of the fingerprints that differ, by the message of those who compare."""
    said = compare_fingerprints(first._asdict(), again)
    return {name for name in NAMES if f"its {name} (" in said}


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        (
            "config.json",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
            "configuration",
        ),
        ("config.json", {"rms_norm_eps": 1e-3}, "configuration"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "tokenizer"),
        ("tokenizer_config.json", {"eos_token": "a"}, "tokenizer"),
    ],
)
def test_a_switch_or_the_tokenizer_changes_its_own_fingerprint(checkpoint, file, values, expected):
    first = jaxedit.load(str(checkpoint)).fingerprints
    edit_json(checkpoint / file, **values)
    changed = jaxedit.load(str(checkpoint)).fingerprints
    assert differing(first, changed) == {expected}


def test_every_bit_of_a_small_models_weights_counts(tiny_checkpoint, monkeypatch):
    """Also between the entries of a sample; of larger models the sample is said to be one."""
    model = jaxedit.load(str(tiny_checkpoint("gpt2")))
    monkeypatch.setattr(fingerprints, "SAMPLED", 10)
    first = np.array(model.base["mlp/w_down"])
    flipped = first.copy()
    flipped.view(np.uint32)[1, 2, 3] ^= 1
    base = model.base | {"mlp/w_down": jnp.array(flipped)}
    changed = dataclasses.replace(model, base=base)
    assert model.fingerprints.weights.startswith("all:")
    assert differing(model.fingerprints, changed.fingerprints) == {"weights"}
    monkeypatch.setattr(fingerprints, "SMALL_PARAMETERS", 10)
    large, also_large = (dataclasses.replace(each) for each in (model, changed))
    assert large.fingerprints.weights == f"sample:{large.fingerprint}"
    assert not differing(large.fingerprints, also_large.fingerprints)


def test_neither_edits_nor_dtype_nor_copies_of_heads_nor_the_path_change_any(
    tiny_checkpoint, tmp_path
):
    path = tiny_checkpoint("llama", num_attention_heads=4, num_key_value_heads=2)
    model = jaxedit.load(str(path), dtype="bfloat16")
    u_FR, v_RD = np.ones((model.config.F, 1)), np.ones((1, model.config.D))
    edit = jaxedit.Edit((jaxedit.LowRank("mlp/w_down", 1, u_FR, v_RD),))
    moved = jaxedit.load(str(shutil.copytree(path, tmp_path / "moved")), dtype="bfloat16")
    wide = {name: array.astype(jnp.float32) for name, array in model.base.items()}
    config = dataclasses.replace(model.config, K=model.config.K * 2, kv_replication=2)
    copied = {
        name: jnp.repeat(array, 2, axis=axis) if (axis := axis_of_heads(name)) >= 0 else array
        for name, array in model.base.items()
    }
    same = [
        jaxedit.apply(model, edit),
        moved,
        dataclasses.replace(model, base=wide),
        dataclasses.replace(model, base=copied, config=config),
    ]
    assert {each.fingerprints for each in same} == {model.fingerprints}


def axis_of_heads(name: str) -> int:
    return PARAMETERS[name].find("K")


def test_a_begin_of_text_token_or_an_overlay_lets_no_weights_be_read_again(
    tiny_checkpoint, monkeypatch
):
    """An editor that puts the token in front asks for the fingerprints at every edit."""
    model = jaxedit.load(str(tiny_checkpoint("llama")))
    changed = with_bos(jaxedit.load(str(tiny_checkpoint("llama"))))
    expected = [changed.fingerprints, changed.fingerprint, changed.rounded_fingerprint]
    own = [model.fingerprints, model.fingerprint, model.rounded_fingerprint]

    def refuse(*weights):
        raise AssertionError("the weights are read again")

    for name in ("sample_weights", "fingerprint_weights"):
        monkeypatch.setattr(models, name, refuse)
    anchored, edited = with_bos(model), with_overlay(model, model.overlay)
    for each, said in ((anchored, expected), (with_bos(edited), expected), (edited, own)):
        assert [each.fingerprints, each.fingerprint, each.rounded_fingerprint] == said
    assert differing(model.fingerprints, anchored.fingerprints) == {"tokenizer"}


def test_what_was_written_before_there_were_three_is_not_compared(golden):
    ours = golden("gpt2").fingerprints
    assert compare_fingerprints(None, ours) == ""
    assert compare_fingerprints({"weights": ours.weights}, ours) == ""
    said = compare_fingerprints({"weights": "all:0", "tokenizer": "1"}, ours)
    assert said == (
        f"its tokenizer (1 there, {ours.tokenizer} here) and "
        f"its weights (all:0 there, {ours.weights} here)"
    )
