"""A pass for second moments that is interrupted goes on to the same bits."""

from pathlib import Path

import numpy as np
import pytest

import jaxedit
from jaxedit.stats import collect
from jaxedit.stats.collect import pack_batches
from jaxedit.stats.sums import add_batch

FAMILIES = ("gpt2", "gptj", "llama", "qwen2", "gpt_neox")


@pytest.fixture
def interrupted(golden, texts, monkeypatch, tmp_path) -> Path:
    """Interrupt a pass over layers 2 and 3 after some 500 tokens; return its file."""
    monkeypatch.setattr(collect, "GROUP_TOKENS", 300)
    part = tmp_path / "a" / "stats.part"

    def stop(n_done, n_total):
        if n_done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jaxedit.collect_stats(golden("gpt2"), texts("gpt2"), [2, 3], resume=part, on_tokens=stop)
    assert part.is_file()
    return part


def test_an_interrupted_pass_goes_on_to_the_same_bits(golden, texts, interrupted):
    model, seen = golden("gpt2"), []
    whole = jaxedit.collect_stats(model, texts("gpt2"), [2, 3])

    def note(n_done, n_total):
        seen.append(n_done)

    settings = dict(resume=interrupted, on_tokens=note)
    again = jaxedit.collect_stats(model, texts("gpt2"), [2, 3], **settings)
    assert seen[0] > 500  # it began where it was
    for layer in (2, 3):
        np.testing.assert_array_equal(again.moments[layer], whole.moments[layer])
    assert not interrupted.exists()


def test_an_interrupt_inside_a_group_saves_whole_groups(golden, texts, monkeypatch, tmp_path):
    """Batches of a group that is not done are added when the pass goes on, and only then."""
    monkeypatch.setattr(collect, "GROUP_TOKENS", 300)
    monkeypatch.setattr(collect, "BATCH_TOKENS", 1)  # a row is a batch
    model, read, part = golden("gpt2"), texts("gpt2"), tmp_path / "stats.part"
    whole = jaxedit.collect_stats(model, read, [2, 3])

    # Raise in the second batch of the second group.
    batches_of_group, n_left = [], None

    def pack(token_lists, n_data):
        nonlocal n_left
        packed = pack_batches(token_lists, n_data)
        batches_of_group.append(len(packed))
        n_left = 1 if len(batches_of_group) == 2 else None
        return packed

    def add(*arguments):
        nonlocal n_left
        if n_left == 0:
            raise KeyboardInterrupt
        n_left = None if n_left is None else n_left - 1
        return add_batch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(collect, "pack_batches", pack)
        patched.setattr(collect, "add_batch", add)
        with pytest.raises(KeyboardInterrupt):
            jaxedit.collect_stats(model, read, [2, 3], resume=part)
    assert len(batches_of_group) == 2
    assert batches_of_group[1] >= 2

    again = jaxedit.collect_stats(model, read, [2, 3], resume=part)
    for layer in (2, 3):
        np.testing.assert_array_equal(again.moments[layer], whole.moments[layer])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seed=1), "seed: 0 there, 1 now"),
        (dict(max_length=9), "max_length: 256 there, 9 now"),
        (dict(layers=[3]), "layers:"),
        (dict(more_texts=["more"]), "corpus_sha256: "),
        (dict(family="gptj"), r"fingerprint: .*; model: "),
    ],
    ids=str,
)
def test_an_interrupted_pass_goes_on_with_the_same_arguments_only(
    golden, texts, interrupted, change, message
):
    change = dict(change)
    model, layers = golden(change.pop("family", "gpt2")), change.pop("layers", [2, 3])
    read = [*texts("gpt2"), *change.pop("more_texts", [])]
    with pytest.raises(ValueError, match=message):
        jaxedit.collect_stats(model, read, layers, resume=interrupted, **change)
