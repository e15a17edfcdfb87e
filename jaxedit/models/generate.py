"""Continuing prompts with cached keys and values: greedy, or from the k most likely tokens with a
seed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.decoder import AttentionContext
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers_with_kv
from jaxedit.models.model import Model

PROMPT_STEP = 16  # prompts are padded to multiples of this, so that few shapes are compiled


def generate(
    model: Model,
    prompts: list[str],
    *,
    max_new_tokens: int = 20,
    top_k: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Continues prompts; returns prompt and continuation as text.

    Args:
      model: with or without edits.
      prompts: at least one text; a begin-of-text token is added where the model's tokenizer says
        so.
      max_new_tokens: how many tokens to add; a row ends early at the tokenizer's end-of-text token.
      top_k: sample among this many most likely tokens; absent: always the most likely one.
      seed: of the sampling.

    Raises:
      ValueError: on an empty list or prompt, a count that is not positive, or a text that would be
        too long.
    """
    token_lists = [model.tokenizer.encode(prompt) for prompt in prompts]
    new_ids = continue_tokens(
        model, token_lists, max_new_tokens=max_new_tokens, top_k=top_k, seed=seed
    )
    return [
        model.tokenizer.decode(old + new) for old, new in zip(token_lists, new_ids, strict=True)
    ]


def continue_tokens(
    model: Model,
    token_lists: list[list[int]],
    *,
    max_new_tokens: int,
    top_k: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """As `generate`, on tokens: returns the new tokens of each row, without the end-of-text token."""
    if not token_lists or not all(token_lists):
        raise ValueError("generation needs at least one prompt, and each prompt at least one token")
    if max_new_tokens < 1 or (top_k is not None and not 1 <= top_k <= model.config.V):
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and top_k={top_k} must be positive (top_k at most {model.config.V})"
        )
    longest = max(map(len, token_lists))
    model.config.check_length(longest + max_new_tokens, "a prompt with its continuation")
    n_data = model.mesh.shape["data"]
    rows = n_data * -(-len(token_lists) // n_data)
    token_BT = np.zeros((rows, PROMPT_STEP * -(-longest // PROMPT_STEP)), np.int32)
    length_B = np.ones(rows, np.int32)
    for row, tokens in enumerate(token_lists):
        token_BT[row, : len(tokens)] = tokens
        length_B[row] = len(tokens)
    new_BT = _generate(
        model,
        shard_batch(model.mesh, "BT", token_BT),
        shard_batch(model.mesh, "B", length_B),
        jax.random.key(seed),
        max_new_tokens=max_new_tokens,
        top_k=top_k or 1,
    )
    ended = model.tokenizer.eos_id
    lists = [row.tolist() for row in jax.device_get(new_BT)[: len(token_lists)]]
    return [new[: new.index(ended)] if ended in new else new for new in lists]


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "top_k"))
def _generate(model: Model, token_BT, length_B, rng, max_new_tokens: int, top_k: int):
    B, T = token_BT.shape
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    h_BTD = embed(model, token_BT, position_BT)
    h_BTD, (k_LBKTH, v_LBKTH) = run_layers_with_kv(
        model, h_BTD, causal_attention(position_BT), 0, model.config.L
    )
    room = ((0, 0), (0, 0), (0, 0), (0, max_new_tokens), (0, 0))
    cache = (jnp.pad(k_LBKTH, room), jnp.pad(v_LBKTH, room))
    last_BD = jnp.take_along_axis(h_BTD, (length_B - 1)[:, None, None], axis=1)[:, 0]
    in_prompt_BS = jnp.arange(T + max_new_tokens) < length_B[:, None]

    def choose(h_BD, step):
        best_BK, token_BK = jax.lax.top_k(
            embedding_and_head(model).unembed(h_BD[:, None])[:, 0], top_k
        )
        pick_B = jax.random.categorical(jax.random.fold_in(rng, step), best_BK)
        return jnp.take_along_axis(token_BK, pick_B[:, None], axis=1)[:, 0].astype(jnp.int32)

    def body(step, carry):
        token_B, cache, new_BT = carry
        # New tokens stand after the padded prompts in the cache, but right after each row's own
        # prompt in position.
        seen_BS = in_prompt_BS | (
            (jnp.arange(T + max_new_tokens) >= T) & (jnp.arange(T + max_new_tokens) < T + step - 1)
        )
        mask_BTS = jnp.concatenate([seen_BS, jnp.ones((B, 1), bool)], axis=1)[:, None]
        position_B1 = (length_B + step - 1)[:, None]
        h_B1D = embed(model, token_B[:, None], position_B1)
        h_B1D, own = run_layers_with_kv(
            model, h_B1D, AttentionContext(position_B1, mask_BTS, cache), 0, model.config.L
        )
        cache = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new, T + step - 1, axis=3)
            for old, new in zip(cache, own, strict=True)
        )
        token_B = choose(h_B1D[:, 0], step)
        return token_B, cache, new_BT.at[:, step].set(token_B)

    token_B = choose(last_BD, 0)
    new_BT = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(token_B)
    return replicate(
        model.mesh, jax.lax.fori_loop(1, max_new_tokens, body, (token_B, cache, new_BT))[2]
    )
