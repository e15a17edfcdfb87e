"""Continuing prompts with cached keys and values: greedily, or by seeded sampling."""

import functools
from collections.abc import Iterator
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.attention import AttentionContext
from jaxedit.models.cache_size import check_cache_fits
from jaxedit.models.generated_text import decode_continuation, strip_special
from jaxedit.models.layers import causal_attention, embed, run_layers_with_kv
from jaxedit.models.model import Model
from jaxedit.models.packing import pad_tokens
from jaxedit.models.sampling import (
    Sampling,
    SamplingOptions,
    choose_tokens,
    resolve_sampling,
)
from jaxedit.models.texts import list_texts
from jaxedit.rounding import round_up

PROMPT_STEP = 16  # prompts are padded to multiples of this, so that few shapes are compiled
STREAM_STEP = 4  # tokens between two looks at a text that is streamed


class Decoding(NamedTuple):
    """Where a continuation stands.

    Attributes:
      token_B: each row's last token.
      cache: keys and values of all layers, with room for those of the new tokens behind.
      new_BT: the new tokens so far, zeros behind.
    """

    token_B: jax.Array
    cache: tuple[jax.Array, jax.Array]
    new_BT: jax.Array


class Continuation(NamedTuple):
    """What follows a prompt.

    Attributes:
      tokens: the new ones; where an end token ended them, it is the last.
      has_ended: whether one did.
    """

    tokens: list[int]
    has_ended: bool


def generate(
    model: Model,
    prompts: list[str],
    *,
    max_new_tokens: int = 20,
    top_k: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Continue prompts; return prompt and continuation as text, without special tokens.

    Args:
      model: with or without edits.
      prompts: at least one text; a begin-of-text token is added where the model's tokenizer says
        so.
      max_new_tokens: how many tokens to add; a row ends early at one of the tokenizer's end tokens.
      top_k: sample among this many most likely tokens; None: among all, or where temperature and
        top_p are None as well, always the most likely one.
      temperature: divides the logits before sampling; 0: always the most likely token.
      top_p: sample among the fewest most likely tokens with this probability together (nucleus
        sampling).
      seed: of the sampling.

    Raises:
      ValueError: on an empty list or prompt, a text instead of a list, a number that cannot be, a
        token that the model has no embedding of, or a text that would be too long.
    """
    prompts = list_texts(prompts, "generation")
    new_texts = continue_texts(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    pairs = zip(prompts, new_texts, strict=True)
    return [strip_special(model.tokenizer, prompt + new) for prompt, new in pairs]


def continue_texts(
    model: Model,
    prompts: list[str] | list[list[int]],
    *,
    max_new_tokens: int,
    **asked: Unpack[SamplingOptions],
) -> list[str]:
    """Continue prompts; return what follows each, without special tokens.

    Args:
      model: with or without edits.
      prompts: at least one, all of them texts, or tokens to which nothing is added.
      max_new_tokens: as in `generate`.
      **asked: how tokens are sampled, as in `generate`.

    Raises:
      ValueError: as `generate`.
    """
    tokenizer = model.tokenizer
    token_lists = [tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
    found = continue_rows(model, token_lists, max_new_tokens=max_new_tokens, **asked)
    pairs = zip(token_lists, found, strict=True)
    return [decode_continuation(tokenizer, tokens, new.tokens) for tokens, new in pairs]


def continue_tokens(
    model: Model,
    token_lists: list[list[int]],
    *,
    max_new_tokens: int,
    **asked: Unpack[SamplingOptions],
) -> list[list[int]]:
    """Continue rows of tokens; return each row's new ones, without the token that ended them.

    Args:
      model: with or without edits.
      token_lists: at least one, none of them empty; nothing is added to them.
      max_new_tokens: as in `generate`.
      **asked: how tokens are sampled, as in `generate`.

    Raises:
      ValueError: as `generate`.
    """
    found = continue_rows(model, token_lists, max_new_tokens=max_new_tokens, **asked)
    return [new.tokens[:-1] if new.has_ended else new.tokens for new in found]


def continue_rows(
    model: Model,
    token_lists: list[list[int]],
    *,
    max_new_tokens: int,
    **asked: Unpack[SamplingOptions],
) -> list[Continuation]:
    """Continue rows of tokens; return each row's new ones, up to the token that ended them.

    Args:
      model: with or without edits.
      token_lists: as in `continue_tokens`.
      max_new_tokens: as in `generate`.
      **asked: how tokens are sampled, as in `generate`.

    Raises:
      ValueError: as `generate`.
    """
    sampling = resolve_sampling(model, max_new_tokens, **asked)
    token_BT, length_B = _padded(model, token_lists, max_new_tokens)
    new_BT = _generate(model, token_BT, length_B, max_new_tokens, sampling.top_k, sampling)
    rows = jax.device_get(new_BT)[: len(token_lists)]
    return [_up_to_end(row.tolist(), model.tokenizer.end_ids) for row in rows]


def _up_to_end(new: list[int], end_ids: frozenset[int]) -> Continuation:
    """Cut new tokens behind the first one that ends them."""
    at = next((i for i, token in enumerate(new) if token in end_ids), None)
    return Continuation(new, False) if at is None else Continuation(new[: at + 1], True)


def stream(
    model: Model, tokens: list[int], *, max_new_tokens: int, **asked: Unpack[SamplingOptions]
) -> Iterator[str]:
    """Continue tokens as `continue_tokens` does, and yield the new text piece by piece.

    Args:
      model: with or without edits.
      tokens: of the prompt; nothing is added to them.
      max_new_tokens: as in `generate`.
      **asked: how tokens are sampled, as in `generate`.

    Raises:
      ValueError: as `generate`.
    """
    sampling = resolve_sampling(model, max_new_tokens, **asked)
    token_BT, length_B = _padded(model, [tokens], max_new_tokens)
    top_k, tokenizer = sampling.top_k, model.tokenizer
    decoding = _begin(model, token_BT, length_B, max_new_tokens, top_k, sampling)
    n_shown, n_new, is_over = 0, 1, False
    while not is_over:
        # What is new since the last look; a character whose bytes are not all there waits.
        made = jax.device_get(decoding.new_BT)[0, :n_new].tolist()
        new, has_ended = _up_to_end(made, tokenizer.end_ids)
        is_over = has_ended or n_new == max_new_tokens
        text = decode_continuation(tokenizer, tokens, new)
        text = text if is_over else text.rstrip("\ufffd")
        if len(text) > n_shown:
            yield text[n_shown:]
            n_shown = len(text)
        if not is_over:
            n_steps = min(STREAM_STEP, max_new_tokens - n_new)
            decoding = _advance(model, decoding, length_B, n_new, n_steps, top_k, sampling)
            n_new += n_steps


def _padded(
    model: Model, token_lists: list[list[int]], max_new_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Check prompts and pad them to few shapes; return tokens [B, T] and lengths [B]."""
    if not token_lists or not all(token_lists):
        raise ValueError("generation needs at least one prompt, and each prompt at least one token")
    for tokens in token_lists:
        model.tokenizer.check_ids(tokens)
    longest = max(map(len, token_lists))
    model.config.check_length(longest + max_new_tokens, "a prompt with its continuation")

    # A row that only fills up the batch counts as one token long.
    n_rows = round_up(len(token_lists), model.mesh.shape["data"])
    check_cache_fits(model, n_rows, longest + max_new_tokens)
    token_BT = pad_tokens(token_lists, n_rows, round_up(longest, PROMPT_STEP))
    length_B = np.ones(n_rows, np.int32)
    length_B[: len(token_lists)] = list(map(len, token_lists))
    return shard_batch(model.mesh, "BT", token_BT), shard_batch(model.mesh, "B", length_B)


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "top_k"))
def _generate(
    model: Model, token_BT, length_B, max_new_tokens: int, top_k: int, sampling: Sampling
) -> jax.Array:
    """Generate max_new_tokens for each row: the prompts at once, then a token at a time."""
    start = _begin(model, token_BT, length_B, max_new_tokens, top_k, sampling)
    return _advance(model, start, length_B, 1, max_new_tokens - 1, top_k, sampling).new_BT


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "top_k"))
def _begin(
    model: Model, token_BT, length_B, max_new_tokens: int, top_k: int, sampling: Sampling
) -> Decoding:
    """Run the prompts, with room behind their keys and values; choose each row's first token."""
    B, T = token_BT.shape
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    h_BTD = embed(model, token_BT, position_BT)
    h_BTD, (k_LBKTH, v_LBKTH) = run_layers_with_kv(
        model, h_BTD, causal_attention(position_BT), 0, model.config.L
    )
    room = ((0, 0), (0, 0), (0, 0), (0, max_new_tokens), (0, 0))
    cache = (jnp.pad(k_LBKTH, room), jnp.pad(v_LBKTH, room))
    last_BD = jnp.take_along_axis(h_BTD, (length_B - 1)[:, None, None], axis=1)[:, 0]
    token_B = choose_tokens(model, last_BD, 0, top_k, sampling)
    new_BT = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(token_B)
    return Decoding(token_B, cache, replicate(model.mesh, new_BT))


@functools.partial(jax.jit, static_argnames="top_k")
def _advance(
    model: Model,
    start: Decoding,
    length_B,
    first_step,
    n_steps,
    top_k: int,
    sampling: Sampling,
) -> Decoding:
    """Generate n_steps more tokens for each row, numbered from first_step on."""
    B, max_new_tokens = start.new_BT.shape
    S = start.cache[0].shape[3]
    T = S - max_new_tokens
    in_prompt_BS = jnp.arange(S) < length_B[:, None]
    # New tokens stand after the padded prompts in the cache (from T on), but right after each row's
    # own prompt in position.
    is_new_S = jnp.arange(S) >= T
    position_BS = jnp.arange(S) + jnp.where(is_new_S, length_B[:, None] - T, 0)

    def body(step, carry: Decoding) -> Decoding:
        """Run the last token through the network, keep its keys and values, choose the next."""
        # A token sees its prompt, the new ones before it and itself.
        is_past_S = jnp.arange(S) < T + step - 1
        seen_BS = in_prompt_BS | (is_new_S & is_past_S)
        mask_B1S = jnp.concatenate([seen_BS, jnp.ones((B, 1), bool)], axis=1)[:, None]
        position_B1 = (length_B + step - 1)[:, None]

        h_B1D = embed(model, carry.token_B[:, None], position_B1)
        attn_context = AttentionContext(position_B1, mask_B1S, carry.cache, position_BS)
        h_B1D, new_kv = run_layers_with_kv(model, h_B1D, attn_context, 0, model.config.L)
        k_LBKSH, v_LBKSH = (
            jax.lax.dynamic_update_slice_in_dim(old, new, T + step - 1, axis=3)
            for old, new in zip(carry.cache, new_kv, strict=True)
        )
        token_B = choose_tokens(model, h_B1D[:, 0], step, top_k, sampling)
        return Decoding(token_B, (k_LBKSH, v_LBKSH), carry.new_BT.at[:, step].set(token_B))

    end = jax.lax.fori_loop(first_step, first_step + n_steps, body, start)
    return end._replace(new_BT=replicate(model.mesh, end.new_BT))
