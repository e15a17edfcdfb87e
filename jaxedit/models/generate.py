"""Continuing prompts with cached keys and values: greedily, or by seeded top-k sampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.attention import AttentionContext
from jaxedit.models.layers import causal_attention, embed, embedding_and_head, run_layers_with_kv
from jaxedit.models.model import Model
from jaxedit.models.packing import pad_tokens
from jaxedit.rounding import round_up

PROMPT_STEP = 16  # prompts are padded to multiples of this, so that few shapes are compiled


def generate(
    model: Model,
    prompts: list[str],
    *,
    max_new_tokens: int = 20,
    top_k: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Continue prompts; return prompt and continuation as text.

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
    new_lists = continue_tokens(
        model, token_lists, max_new_tokens=max_new_tokens, top_k=top_k, seed=seed
    )
    pairs = zip(token_lists, new_lists, strict=True)
    return [model.tokenizer.decode(tokens + new) for tokens, new in pairs]


def continue_tokens(
    model: Model,
    token_lists: list[list[int]],
    *,
    max_new_tokens: int,
    top_k: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Continue rows of tokens; return each row's new ones, without the end-of-text token.

    Args:
      model: with or without edits.
      token_lists: at least one, none of them empty; nothing is added to them.
      max_new_tokens: as in `generate`.
      top_k: as in `generate`.
      seed: of the sampling.

    Raises:
      ValueError: as `generate`.
    """
    if not token_lists or not all(token_lists):
        raise ValueError("generation needs at least one prompt, and each prompt at least one token")
    if max_new_tokens < 1 or (top_k is not None and not 1 <= top_k <= model.config.V):
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and top_k={top_k} must be positive "
            f"(top_k at most {model.config.V})"
        )
    longest = max(map(len, token_lists))
    model.config.check_length(longest + max_new_tokens, "a prompt with its continuation")

    # Rows are padded to few shapes; a row that only fills up the batch counts as one token long.
    n_rows = round_up(len(token_lists), model.mesh.shape["data"])
    token_BT = pad_tokens(token_lists, n_rows, round_up(longest, PROMPT_STEP))
    length_B = np.ones(n_rows, np.int32)
    length_B[: len(token_lists)] = list(map(len, token_lists))
    new_BT = _generate(
        model,
        shard_batch(model.mesh, "BT", token_BT),
        shard_batch(model.mesh, "B", length_B),
        jax.random.key(seed),
        max_new_tokens=max_new_tokens,
        top_k=top_k or 1,
    )

    # Each row up to its end-of-text token.
    eos_id = model.tokenizer.eos_id
    new_lists = [row.tolist() for row in jax.device_get(new_BT)[: len(token_lists)]]
    return [new[: new.index(eos_id)] if eos_id in new else new for new in new_lists]


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "top_k"))
def _generate(model: Model, token_BT, length_B, rng, max_new_tokens: int, top_k: int) -> jax.Array:
    """Generate max_new_tokens for each row: the prompts at once, then a token at a time."""
    # The prompts, with room behind their keys and values for those of the new tokens.
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

    def choose(h_BD, step) -> jax.Array:
        """Sample each row's next token among the top_k most likely ones (of one: the argmax)."""
        logits_BV = embedding_and_head(model).unembed(h_BD[:, None])[:, 0]
        best, candidates = jax.lax.top_k(logits_BV, top_k)
        chosen_B = jax.random.categorical(jax.random.fold_in(rng, step), best)
        token_B = jnp.take_along_axis(candidates, chosen_B[:, None], axis=1)[:, 0]
        return token_B.astype(jnp.int32)

    def body(step, carry):
        """Run the last token through the network, keep its keys and values, choose the next."""
        token_B, cache, new_BT = carry

        # New tokens stand after the padded prompts in the cache (from T on), but right after each
        # row's own prompt in position. A token sees its prompt, the new ones before it and itself.
        is_new_S = jnp.arange(T + max_new_tokens) >= T
        is_past_S = jnp.arange(T + max_new_tokens) < T + step - 1
        seen_BS = in_prompt_BS | (is_new_S & is_past_S)
        mask_B1S = jnp.concatenate([seen_BS, jnp.ones((B, 1), bool)], axis=1)[:, None]
        position_B1 = (length_B + step - 1)[:, None]

        h_B1D = embed(model, token_B[:, None], position_B1)
        attn_context = AttentionContext(position_B1, mask_B1S, cache)
        h_B1D, new_kv = run_layers_with_kv(model, h_B1D, attn_context, 0, model.config.L)
        cache = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new, T + step - 1, axis=3)
            for old, new in zip(cache, new_kv, strict=True)
        )
        token_B = choose(h_B1D[:, 0], step)
        return token_B, cache, new_BT.at[:, step].set(token_B)

    token_B = choose(last_BD, 0)
    new_BT = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(token_B)
    carry = (token_B, cache, new_BT)
    _, _, new_BT = jax.lax.fori_loop(1, max_new_tokens, body, carry)
    return replicate(model.mesh, new_BT)
