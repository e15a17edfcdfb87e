"""How a next token is drawn from a model's distribution: the most likely one, or by a seed."""

from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp

from jaxedit.models.layers import embedding_and_head
from jaxedit.models.model import Model
from jaxedit.rounding import LARGEST_FLOAT, check_whole_number, is_number


class SamplingOptions(TypedDict, total=False):
    """What `jaxedit.generate` may be asked for, explained there."""

    top_k: int | None
    temperature: float | None
    top_p: float | None
    seed: int


class Sampling(NamedTuple):
    """How a next token is drawn from the model's distribution.

    Attributes:
      top_k: among so many most likely tokens; 1: always the most likely one.
      temperature: the logits are divided by it.
      top_p: among the fewest most likely tokens that have this probability together.
      rng: the key of the draws.
    """

    top_k: int
    temperature: float
    top_p: float
    rng: jax.Array


def resolve_sampling(
    model: Model,
    max_new_tokens: int,
    top_k: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Sampling:
    """Check what `jaxedit.generate` was asked for, and resolve what is None.

    Raises:
      ValueError: on a number that cannot be.
    """
    check_whole_number("max_new_tokens", max_new_tokens, least=1, most=2**31 - 1)
    check_whole_number("seed", seed, least=-(2**63), most=2**63 - 1)
    if top_k is not None:
        check_whole_number("top_k", top_k, least=1, most=model.config.V)
    if temperature is not None and not (
        is_number(temperature) and 0 <= temperature <= LARGEST_FLOAT
    ):
        raise ValueError(f"temperature={temperature!r}: expected 0 (greedy) or a positive number")
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p={top_p!r}: expected a probability over 0, at most 1")
    is_greedy = (top_k, temperature, top_p) == (None, None, None) or temperature == 0
    return Sampling(
        top_k=1 if is_greedy else top_k or model.config.V,
        temperature=temperature or 1.0,
        top_p=1.0 if top_p is None else top_p,
        rng=jax.random.key(seed),
    )


def choose_tokens(model: Model, h_BD: jax.Array, step, top_k: int, sampling: Sampling) -> jax.Array:
    """Draw each row's next token (of one candidate: the argmax), as transformers filters them.

    Args:
      model: with or without edits.
      h_BD: the residual stream behind the last layer, at each row's last token.
      step: the number of the new token.
      top_k: as in `sampling`, where it is not static.
      sampling: how tokens are drawn.

    Returns:
      int32 [B].
    """
    logits_BV = embedding_and_head(model).unembed(h_BD[:, None])[:, 0]
    best, candidates = jax.lax.top_k(logits_BV, top_k)  # the most likely one first

    # temperature, then the nucleus: a token stays where those before it have less than top_p
    best = best / sampling.temperature
    share = jax.nn.softmax(best, axis=-1)
    before = jnp.cumsum(share, axis=-1) - share
    best = jnp.where(before < sampling.top_p, best, -jnp.inf)

    rng = jax.random.fold_in(sampling.rng, step)
    chosen_B = jax.random.categorical(rng, best)
    token_B = jnp.take_along_axis(candidates, chosen_B[:, None], axis=1)[:, 0]
    return token_B.astype(jnp.int32)
