"""Scored answers against a plain loop in HF torch."""

from typing import NamedTuple

import numpy as np
import pytest
from answers_in_torch import Rating

import jaxedit
from jaxedit.metrics.answers import ScoredAnswers, score_answers


class Answers(NamedTuple):
    """What a model and torch make of the same answers."""

    ours: ScoredAnswers
    theirs: list[Rating]


@pytest.fixture(scope="module", params=[("gpt2", False), ("llama", False), ("llama", True)])
def answers(request, shared, torch_of, prompts_of) -> Answers:
    """Score answers that are wrong, right, and right at first only, of one token and more."""
    family, bos = request.param
    hf = torch_of(family, bos)
    asked, targets, beginnings = prompts_of(family)
    pairs = [(prompt, target) for prompt in asked for target in targets[:3]]
    pairs.append((asked[0], "a rather longer answer of several words"))
    greedy = [(prompt, hf.greedy(prompt)) for prompt in [*asked, *beginnings]]
    assert {n for _, by_length in greedy for n in by_length} == {1, 2, 3}
    for prompt, by_length in greedy:
        pairs += [(prompt, answer) for answer in by_length.values()]
        if 1 in by_length:
            pairs.append((prompt, f"{by_length[1]} and more"))
    model = jaxedit.load(str(shared / "golden" / family), add_bos=bos)
    return Answers(score_answers(model, pairs), [hf.rate(*pair) for pair in pairs])


def test_losses_of_answers_are_those_of_torch(answers):
    ours, theirs = answers
    np.testing.assert_allclose(ours.nll_nats, [r.q for r in theirs], rtol=0, atol=1e-4)
    assert ours.nll_nats.dtype == np.float64
    assert ours.n_tokens.tolist() == [r.n for r in theirs]
    assert len(set(ours.n_tokens.tolist())) > 3


def test_answers_are_reproduced_where_greedy_decoding_in_torch_says_them(answers):
    ours, theirs = answers
    assert ours.is_reproduced.dtype == bool
    assert ours.is_reproduced.tolist() == [r.is_reproduced for r in theirs]
    assert 5 < ours.is_reproduced.sum() < len(theirs) - 5


def test_token_accuracies_are_those_of_torch(answers):
    ours, theirs = answers
    assert ours.token_accuracy.tolist() == [r.token_accuracy for r in theirs]
    assert set(ours.token_accuracy.tolist()) - {0.0, 1.0}


def test_an_answer_follows_after_exactly_one_space(golden):
    model = golden("gpt2")
    pairs = [("The capital is", answer) for answer in ("Rome", " Rome", "Rome ")]
    pairs += [("The capital is ", "Rome"), ("The capital is  ", " Rome")]
    plain, *spaced = score_answers(model, pairs).nll_nats
    assert spaced == [plain] * 4


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one pair"),
        ([("The capital is", " ")], r"The capital is.* has an empty answer"),
        ([("", "Rome")], "no token before it"),
        ([("The capital is", "Rome " * 300)], r"has \d+ tokens, more than the 256 positions"),
    ],
    ids=["no pairs", "empty answer", "empty prompt", "too long"],
)
def test_what_cannot_be_scored_is_refused(golden, pairs, message):
    with pytest.raises(ValueError, match=message):
        score_answers(golden("gpt2"), pairs)
