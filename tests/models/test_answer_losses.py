"""Losses of answers are those that whole texts have, and a prompt runs once for its answers."""

import dataclasses

import numpy as np
import pytest

from jaxedit.models import answer_losses as module
from jaxedit.models.answer_losses import answer_losses
from jaxedit.models.packing import pack
from jaxedit.models.score import token_losses

PROMPT, OTHER = [5, 9, 2, 17, 30], [8, 8, 3]
ANSWERS = [
    (PROMPT + [7], 5),
    (PROMPT + [11], 5),
    (PROMPT + [7, 12, 4], 5),
    (OTHER + [6, 1], 3),
    (OTHER[:1] + [4], 1),
    *((list(range(2, 2 + n)) + [n], n) for n in range(10, 40)),  # more than a row of 64 holds
]


@pytest.fixture
def texts_run(monkeypatch) -> list[list[int]]:
    """The texts that were packed."""
    found: list[list[int]] = []

    def pack_and_note(texts, *args):
        found.extend(texts)
        return pack(texts, *args)

    monkeypatch.setattr(module, "pack", pack_and_note)
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_losses_are_those_of_whole_texts(golden, family):
    model = golden(family)
    losses = answer_losses(model, ANSWERS)
    whole = token_losses(model, pack([tokens for tokens, _ in ANSWERS]))
    for i, (tokens, first) in enumerate(ANSWERS):
        assert len(losses.nll_nats[i]) == len(tokens) - first
        np.testing.assert_allclose(losses.nll_nats[i], whole.nll_nats[i][first - 1 :], rtol=1e-5)
        np.testing.assert_array_equal(losses.is_argmax[i], whole.is_argmax[i][first - 1 :])


def test_answers_of_one_token_share_their_prompt(golden, texts_run):
    answer_losses(golden("gpt2"), ANSWERS[:4])
    assert texts_run == [PROMPT, PROMPT + [7, 12], OTHER + [6]]


def test_answers_of_two_groups_share_nothing(golden, texts_run):
    answer_losses(golden("gpt2"), ANSWERS[:2], [0, 1])
    assert texts_run == [PROMPT, PROMPT]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_of_equal_logits_the_first_is_the_likeliest(golden, family):
    """A collapsed model's logits can be all the same: greedy decoding then says token 0."""
    model = golden(family)
    flat = {
        name: 0 * array if name.startswith("final/") else array
        for name, array in model.base.items()
    }
    equal = dataclasses.replace(model, base=flat)
    losses = token_losses(equal, pack([[5, 0, 7, 0, 3]]))
    np.testing.assert_allclose(losses.nll_nats[0], np.log(model.config.V), rtol=1e-6)
    assert losses.is_argmax[0].tolist() == [True, False, True, False]
