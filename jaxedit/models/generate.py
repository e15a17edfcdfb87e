"""Continuing prompts with cached keys and values: greedily, or by seeded sampling."""

import functools
from collections.abc import Iterator
from typing import NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.attention import AttentionContext
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers_with_kv
from jaxedit.models.model import Model
from jaxedit.models.packing import pad_tokens
from jaxedit.models.texts import check_texts
from jaxedit.rounding import round_up

PROMPT_STEP = 16  # prompts are padded to multiples of this, so that few shapes are compiled
STREAM_STEP = 4  # tokens between two looks at a text that is streamed


class SamplingOptions(TypedDict, total=False):
    """What `generate` may be asked for, explained there."""

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
    """Continue prompts; return prompt and continuation as text.

    Args:
      model: with or without edits.
      prompts: at least one text; a begin-of-text token is added where the model's tokenizer says
        so.
      max_new_tokens: how many tokens to add; a row ends early at the tokenizer's end-of-text token.
      top_k: sample among this many most likely tokens; None: among all, or where temperature and
        top_p are None as well, always the most likely one.
      temperature: divides the logits before sampling; 0: always the most likely token.
      top_p: sample among the fewest most likely tokens with this probability together (nucleus
        sampling).
      seed: of the sampling.

    Raises:
      ValueError: on an empty list or prompt, a text instead of a list, a number that cannot be, or
        a text that would be too long.
    """
    check_texts(prompts, "generation")
    token_lists = [model.tokenizer.encode(prompt) for prompt in prompts]
    new_lists = continue_tokens(
        model,
        token_lists,
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    pairs = zip(token_lists, new_lists, strict=True)
    return [model.tokenizer.decode(tokens + new) for tokens, new in pairs]


def continue_tokens(
    model: Model,
    token_lists: list[list[int]],
    *,
    max_new_tokens: int,
    **asked: Unpack[SamplingOptions],
) -> list[list[int]]:
    """Continue rows of tokens; return each row's new ones, without the end-of-text token.

    Args:
      model: with or without edits.
      token_lists: at least one, none of them empty; nothing is added to them.
      max_new_tokens: as in `generate`.
      **asked: how tokens are sampled, as in `generate`.

    Raises:
      ValueError: as `generate`.
    """
    sampling = _sampling(model, max_new_tokens, **asked)
    token_BT, length_B = _padded(model, token_lists, max_new_tokens)
    new_BT = _generate(model, token_BT, length_B, max_new_tokens, sampling.top_k, sampling)

    # Each row up to its end-of-text token.
    eos_id = model.tokenizer.eos_id
    new_lists = [row.tolist() for row in jax.device_get(new_BT)[: len(token_lists)]]
    return [new[: new.index(eos_id)] if eos_id in new else new for new in new_lists]


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
    sampling = _sampling(model, max_new_tokens, **asked)
    token_BT, length_B = _padded(model, [tokens], max_new_tokens)
    top_k, eos_id = sampling.top_k, model.tokenizer.eos_id
    decoding = _begin(model, token_BT, length_B, max_new_tokens, top_k, sampling)
    prompt, n_shown, n_new, is_over = model.tokenizer.decode(tokens), 0, 1, False
    while not is_over:
        # What is new since the last look; a character whose bytes are not all there waits.
        new = jax.device_get(decoding.new_BT)[0, :n_new].tolist()
        is_over = eos_id in new or n_new == max_new_tokens
        new = new[: new.index(eos_id)] if eos_id in new else new
        text = model.tokenizer.decode(tokens + new).removeprefix(prompt)
        text = text if is_over else text.rstrip("\ufffd")
        if len(text) > n_shown:
            yield text[n_shown:]
            n_shown = len(text)
        if not is_over:
            n_steps = min(STREAM_STEP, max_new_tokens - n_new)
            decoding = _advance(model, decoding, length_B, n_new, n_steps, top_k, sampling)
            n_new += n_steps


def _sampling(
    model: Model,
    max_new_tokens: int,
    top_k: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Sampling:
    """Check what `generate` was asked for, and resolve what is None."""
    if max_new_tokens < 1 or (top_k is not None and not 1 <= top_k <= model.config.V):
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and top_k={top_k} must be positive "
            f"(top_k at most {model.config.V})"
        )
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: expected 0 (greedy) or a positive number")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: expected a probability over 0, at most 1")
    is_greedy = (top_k, temperature, top_p) == (None, None, None) or temperature == 0
    return Sampling(
        top_k=1 if is_greedy else top_k or model.config.V,
        temperature=temperature or 1.0,
        top_p=1.0 if top_p is None else top_p,
        rng=jax.random.key(seed),
    )


def _padded(
    model: Model, token_lists: list[list[int]], max_new_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Check prompts and pad them to few shapes; return tokens [B, T] and lengths [B]."""
    if not token_lists or not all(token_lists):
        raise ValueError("generation needs at least one prompt, and each prompt at least one token")
    longest = max(map(len, token_lists))
    model.config.check_length(longest + max_new_tokens, "a prompt with its continuation")

    # A row that only fills up the batch counts as one token long.
    n_rows = round_up(len(token_lists), model.mesh.shape["data"])
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
    token_B = _choose(model, last_BD, 0, top_k, sampling)
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

    def body(step, carry: Decoding) -> Decoding:
        """Run the last token through the network, keep its keys and values, choose the next."""
        # New tokens stand after the padded prompts in the cache (from T on), but right after each
        # row's own prompt in position. A token sees its prompt, the new ones before it and itself.
        is_new_S = jnp.arange(S) >= T
        is_past_S = jnp.arange(S) < T + step - 1
        seen_BS = in_prompt_BS | (is_new_S & is_past_S)
        mask_B1S = jnp.concatenate([seen_BS, jnp.ones((B, 1), bool)], axis=1)[:, None]
        position_B1 = (length_B + step - 1)[:, None]

        h_B1D = embed(model, carry.token_B[:, None], position_B1)
        attn_context = AttentionContext(position_B1, mask_B1S, carry.cache)
        h_B1D, new_kv = run_layers_with_kv(model, h_B1D, attn_context, 0, model.config.L)
        k_LBKSH, v_LBKSH = (
            jax.lax.dynamic_update_slice_in_dim(old, new, T + step - 1, axis=3)
            for old, new in zip(carry.cache, new_kv, strict=True)
        )
        token_B = _choose(model, h_B1D[:, 0], step, top_k, sampling)
        return Decoding(token_B, (k_LBKSH, v_LBKSH), carry.new_BT.at[:, step].set(token_B))

    end = jax.lax.fori_loop(first_step, first_step + n_steps, body, start)
    return end._replace(new_BT=replicate(model.mesh, end.new_BT))


def _choose(model: Model, h_BD: jax.Array, step, top_k: int, sampling: Sampling) -> jax.Array:
    """Draw each row's next token (of one candidate: the argmax), as transformers filters them."""
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
