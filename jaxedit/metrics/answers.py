"""Answers after their prompts: their loss, and whether greedy decoding reproduces them.

q(o) = -(1/|o|) sum_t log p(o_t | p, o_<t) is the mean loss a token of the answer " o" after the
prompt p, and exp(-q) the per-token probability (arXiv 2202.05262, as its repository evaluates
CounterFact).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxedit.edits.edit import Edit
from jaxedit.edits.per_row import with_per_row_edits
from jaxedit.edits.spaces import tokenise_answer
from jaxedit.models.answer_losses import answer_losses
from jaxedit.models.model import Model


class Pair(NamedTuple):
    """A prompt, its answer, and what stands between (`jaxedit.edits.spaces`)."""

    prompt: str
    answer: str
    leading_space: str = "joined"


class ScoredAnswers(NamedTuple):
    """How a model rates answers after their prompts, one entry for each pair.

    Attributes:
      nll_nats: the mean loss a token of the answer (q above), infinite where it is not finite.
      n_tokens: the answer's tokens.
      token_accuracy: the share of them that are the most likely one; 0 where the loss is not
        finite.
      is_reproduced: whether all are, so that greedy decoding from the prompt would say the answer.
    """

    nll_nats: np.ndarray
    n_tokens: np.ndarray
    token_accuracy: np.ndarray
    is_reproduced: np.ndarray


class AnswerLookup(NamedTuple):
    """Scored answers that can be looked up by prompt and answer.

    Attributes:
      answers: as scored.
      index: (prompt, answer) -> its entry in them.
    """

    answers: ScoredAnswers
    index: dict[Pair, int]

    def q(self, pair: Pair) -> float:
        """Return the mean loss a token, in nats."""
        return float(self.answers.nll_nats[self.index[pair]])

    def is_likelier(self, wanted: Pair, other: Pair) -> bool:
        """Return whether the wanted answer has the higher per-token probability: success."""
        return self.q(other) > self.q(wanted)

    def magnitude(self, wanted: Pair, other: Pair) -> float:
        """Return the difference of the two per-token probabilities."""
        return float(np.exp(-self.q(wanted)) - np.exp(-self.q(other)))

    def probability(self, pair: Pair) -> float:
        """Return the probability of the whole answer."""
        return float(np.exp(-self.q(pair) * self.answers.n_tokens[self.index[pair]]))

    def is_reproduced(self, pair: Pair) -> bool:
        """Return whether greedy decoding from the prompt reproduces the answer: accuracy."""
        return bool(self.answers.is_reproduced[self.index[pair]])

    def token_accuracy(self, pair: Pair) -> float:
        """Return the share of the answer's tokens that are the most likely ones."""
        return float(self.answers.token_accuracy[self.index[pair]])


def score_answers(
    model: Model,
    pairs: Sequence[Pair | tuple[str, str]],
    edits: list[Edit] | None = None,
    edit_of: list[int] | None = None,
) -> ScoredAnswers:
    """Score answers after their prompts, all in one packed call.

    Args:
      model: with or without edits.
      pairs: prompts with their answers. An answer follows its prompt after what its `leading_space`
        says, exactly one space unless it says otherwise, whether or not either was given with
        one; with a begin-of-text token where the model's own settings ask for one.
      edits: low-rank edits that the model has only for single pairs.
      edit_of: which of them, for each pair.

    Raises:
      ValueError: without pairs, on an empty answer, a prompt of no tokens, or a text longer than a
        model's learned positions.
    """
    if not pairs:
        raise ValueError("facts need at least one pair of a prompt and an answer")
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"pair {i} must be texts (prompt, answer), got {pair!r}")
    tokenised = [_tokenise(model, Pair(*pair)) for pair in pairs]
    model_of = None if edits is None else functools.partial(with_per_row_edits, model, edits)
    losses = answer_losses(model, tokenised, edit_of, model_of)
    nll_nats = np.array([of_answer.mean() for of_answer in losses.nll_nats])
    token_accuracy = np.array([of_answer.mean() for of_answer in losses.is_argmax])

    # NaN logits have no argmax, whatever the comparison of running maxima says.
    is_finite = np.isfinite(nll_nats)
    token_accuracy = np.where(is_finite, token_accuracy, 0.0)
    return ScoredAnswers(
        nll_nats=np.where(is_finite, nll_nats, np.inf),
        n_tokens=np.array(list(map(len, losses.nll_nats))),
        token_accuracy=token_accuracy,
        is_reproduced=token_accuracy == 1.0,
    )


def _tokenise(model: Model, pair: Pair) -> tuple[list[int], int]:
    """Tokenise a prompt with its answer; return the tokens and the index of the answer's first."""
    prompt, answer = pair.prompt, pair.answer.strip()
    if not answer:
        raise ValueError(f"the prompt {prompt!r} has an empty answer, so there is nothing to score")
    tokens, first, *_ = tokenise_answer(model.tokenizer, prompt, answer, pair.leading_space)
    if first == 0:
        raise ValueError(
            f"the answer {answer!r} has no token before it to be predicted from; give it a prompt"
        )
    what = f"the prompt {prompt[:40]!r}... with its answer {answer[:40]!r}"
    model.config.check_length(len(tokens), what)
    return tokens, first
