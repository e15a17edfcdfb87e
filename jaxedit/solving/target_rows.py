"""Requests as rows whose loss is that of their targets."""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.edits.request import Request
from jaxedit.mesh import platform
from jaxedit.models.model import Model
from jaxedit.models.packing import pad_tokens
from jaxedit.models.target_loss import TargetRows
from jaxedit.rounding import round_up
from jaxedit.solving.prompt_batch import PREFIX_STEP
from jaxedit.solving.prompts import tokenise_prompt

ACCELERATOR_STEPS = 32, 8  # of T and of Q


class TokenisedTarget(NamedTuple):
    """A request's row.

    Attributes:
      tokens: of the row.
      reads: the positions that predict the target's tokens.
      target: the target's tokens.
    """

    tokens: list[int]
    reads: list[int]
    target: list[int]


def tokenise_target(
    model: Model,
    request: Request,
    leading_space: str,
    last_position: bool = False,
    end_of_text: bool = False,
) -> TokenisedTarget:
    """Tokenise a request's bare prompt and its target.

    Args:
      model: gives the tokenizer and the positions there are.
      request: whose own `leading_space` counts before the one given.
      leading_space: of requests that say nothing of it.
      last_position: whether every token of the target is predicted at the prompt's last position,
        as FT-L does; else behind the tokens before it.
      end_of_text: whether the target ends with the model's end-of-text token.

    Raises:
      ValueError: where a row is longer than the model's positions, the tokenizer has no tokens for
        the target, or no end-of-text token is known.
    """
    tokenizer, space = model.tokenizer, request.leading_space or leading_space
    row = tokenise_prompt(
        tokenizer, "{}", request.prompt, request.subject, request.target_new, space
    )
    tokens = row.tokens
    if end_of_text:
        if tokenizer.eos_id is None:
            raise ValueError(
                f"end_of_text: the tokenizer of {model.metadata.source} has no end-of-text token"
            )
        tokens = [*tokens, tokenizer.eos_id]
    model.config.check_length(len(tokens), f"the request {request.summary[:80]!r}")
    first, target = row.first_target, tokens[row.first_target :]
    if last_position:
        return TokenisedTarget(tokens[:first], [first - 1] * len(target), target)
    return TokenisedTarget(tokens[:-1], list(range(first - 1, len(tokens) - 1)), target)


def pad_targets(targets: list[TokenisedTarget], n_rows: int, shape: tuple[int, int]) -> TargetRows:
    """Lay tokenised targets into rows on the host; the loss is the mean of their mean losses.

    Args:
      targets: at most n_rows.
      n_rows: those beyond the targets have weight 0.
      shape: (T, Q), as wide as the longest row and the longest target at least.
    """
    T, Q = shape
    token_BT = pad_tokens([target.tokens for target in targets], n_rows, T)
    read_BQ, target_BQ = np.zeros((2, n_rows, Q), np.int32)
    weight_BQ = np.zeros((n_rows, Q), np.float32)
    for b, target in enumerate(targets):
        n = len(target.target)
        read_BQ[b, :n], target_BQ[b, :n] = target.reads, target.target
        weight_BQ[b, :n] = 1 / (n * len(targets))
    return TargetRows(token_BT, read_BQ, target_BQ, weight_BQ)


def padded_shape(targets: list[TokenisedTarget], mesh: Mesh) -> tuple[int, int]:
    """Return (T, Q) for rows of these targets, rounded up so that programs are shared.

    Accelerators compile longer and pay less for padding: there are few shapes for them.
    """
    longest = max(len(target.tokens) for target in targets)
    Q = max(len(target.target) for target in targets)
    if platform(mesh) == "cpu":
        return round_up(longest, PREFIX_STEP), Q
    token_step, target_step = ACCELERATOR_STEPS
    return round_up(longest, token_step), round_up(Q, target_step)
