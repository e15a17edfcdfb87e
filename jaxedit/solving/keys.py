"""What a model holds at the subjects of requests: MLP keys at a layer, the residual stream or an
MLP's output at another.

Only tokens up to the subject's last one matter, and layers up to the one asked for; in it, the MLP
only of that token. The tokens with which a template begins are the same for all requests, so their
keys and values are computed once, and the requests' own tokens are packed into rows that attend to
them."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.edits.request import Request
from jaxedit.mesh import replicate, shard_batch
from jaxedit.models.decoder import AttentionContext
from jaxedit.models.layers import (
    causal_attention,
    embed,
    run_layer_at_positions,
    run_layers,
    run_layers_with_kv,
)
from jaxedit.models.model import Model
from jaxedit.models.packing import pack_first_fit, pad_tokens, round_up
from jaxedit.solving.prompts import PREFIX_STEP, fact_token_of, tokenise_prompt

POOLINGS = ("group_means", "mean")
ACTIVATIONS = ("residual", "key", "mlp")  # what `run_layer_at` returns
# a device; with rows of ROW_TOKENS or a little more this bounds memory and keeps products large
ROWS_PER_BATCH = 32
KEY_ROW_TOKENS = 64  # many requests are packed into rows of at least so many tokens
MANY_REQUESTS = 16  # requests


class PackedPrompts(NamedTuple):
    """Requests up to their subjects, in each context template and bare, packed for repeated
    observation.

    Each row holds tokens of requests in one template only, after the tokens that all of them share
    there."""

    shared_CP: (
        np.ndarray
    )  # what begins every request in a template, C templates of which one is bare, padded
    n_shared_C: np.ndarray
    token_GBT: np.ndarray  # G batches of rows
    offset_GBT: np.ndarray  # positions after the shared tokens
    segment_GBT: np.ndarray  # 0: nothing there
    template_GB: np.ndarray
    place_GQ3: (
        np.ndarray
    )  # row and column of a subject's last token, and template * N + request; -1: padding
    weight_C: np.ndarray  # how much each template counts in a request's key
    bare: int  # the template that is the bare prompt
    n_requests: int


def pack_prompts(
    model: Model,
    requests: list[Request],
    groups: tuple[tuple[str, ...], ...],
    pooling: str,
    fact_token: str = "subject_last",
) -> PackedPrompts:
    """Tokenises and packs requests in groups of templates.

    Args:
      model: gives the tokenizer and the mesh.
      requests: at least one.
      groups: context templates; with pooling "group_means" a key is the mean over groups of the
        means within them (MEMIT counts the bare prompt as much as all sampled templates together),
        with "mean" that over all templates.
      pooling: one of POOLINGS.
      fact_token: whose keys and values: `jaxedit.solving.prompts.fact_token_of`.

    Raises:
      ValueError: where a request in a template is longer than the model's positions.
    """
    n_templates = sum(map(len, groups))
    weights = dict.fromkeys([*(template for group in groups for template in group), "{}"], 0.0)
    for group in groups:
        for template in group:
            weights[template] += (
                1 / (len(groups) * len(group)) if pooling == "group_means" else 1 / n_templates
            )
    tokens_CN = []
    at_N = [fact_token_of(model.tokenizer, request, fact_token) for request in requests]
    for template in weights:
        filled = [
            tokenise_prompt(
                model.tokenizer, template, request.prompt, request.subject, fact_token=at
            )
            for request, at in zip(requests, at_N, strict=True)
        ]
        tokens_CN.append([row.tokens[: row.fact_position + 1] for row in filled])
        longest = max(range(len(requests)), key=lambda n: len(tokens_CN[-1][n]))
        model.config.check_length(
            len(tokens_CN[-1][longest]),
            f"the request {requests[longest].summary[:80]!r} in its templates",
        )
    n_shared_C = np.array([_n_shared(lists) for lists in tokens_CN], np.int32)
    own_CN = [
        [tokens[n:] for tokens in lists] for n, lists in zip(n_shared_C, tokens_CN, strict=True)
    ]
    shared_CP = pad_tokens(
        [lists[0][:n] for n, lists in zip(n_shared_C, tokens_CN, strict=True)],
        len(tokens_CN),
        round_up(max(1, int(n_shared_C.max())), PREFIX_STEP),
    )
    token_GBT, offset_GBT, segment_GBT, template_GB, place_GQ3 = _pack(
        own_CN, model.mesh.shape["data"]
    )
    return PackedPrompts(
        shared_CP=shared_CP,
        n_shared_C=n_shared_C,
        token_GBT=token_GBT,
        offset_GBT=offset_GBT,
        segment_GBT=segment_GBT,
        template_GB=template_GB,
        place_GQ3=place_GQ3,
        weight_C=np.array(list(weights.values()), np.float32),
        bare=list(weights).index("{}"),
        n_requests=len(requests),
    )


def _n_shared(token_lists: list[list[int]]) -> int:
    """How many tokens begin all lists; a request's last token is always its own, and one request
    alone shares nothing.
    """
    if len(token_lists) == 1:
        return 0
    shortest = min(map(len, token_lists)) - 1
    return next(
        (i for i in range(shortest) if len({tokens[i] for tokens in token_lists}) > 1), shortest
    )


def _pack(own_CN: list[list[list[int]]], n_data: int) -> tuple[np.ndarray, ...]:
    """token_GBT, offset_GBT, segment_GBT, template_GB and place_GQ3 of `Questions`."""
    n_requests = len(own_CN[0])
    T = round_up(max(len(tokens) for lists in own_CN for tokens in lists), PREFIX_STEP)
    T = max(T, KEY_ROW_TOKENS) if n_requests >= MANY_REQUESTS else T
    rows = [
        (c, members)
        for c, lists in enumerate(own_CN)
        for members in pack_first_fit(list(map(len, lists)), [T])
    ]
    G = -(-len(rows) // (ROWS_PER_BATCH * n_data))
    B = n_data * -(-len(rows) // (G * n_data))
    token_RT, offset_RT, segment_RT = np.zeros((3, G * B, T), np.int32)
    template_R = np.zeros(G * B, np.int32)
    places: list[list[tuple[int, int, int]]] = [[] for _ in range(G)]
    for r, (c, members) in enumerate(rows):
        template_R[r], at = c, 0
        for segment, n in enumerate(members, 1):
            span = slice(at, at + len(own_CN[c][n]))
            token_RT[r, span], offset_RT[r, span], segment_RT[r, span] = (
                own_CN[c][n],
                np.arange(span.stop - at),
                segment,
            )
            at = span.stop
            places[r // B].append((r % B, at - 1, c * n_requests + n))
    place_GQ3 = np.full((G, max(map(len, places)), 3), -1, np.int32)
    for g, found in enumerate(places):
        place_GQ3[g, : len(found)] = found
    return (
        *(array.reshape(G, B, T) for array in (token_RT, offset_RT, segment_RT)),
        template_R.reshape(G, B),
        place_GQ3,
    )


def compute_keys(
    model: Model, questions: PackedPrompts, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """The keys of requests at a layer's MLP: pooled over their templates, and of the bare prompts,
    both [N, F].
    """
    N = questions.n_requests
    pooled_NF, bare_NF = np.zeros((2, N, model.config.F), np.float32)
    for key_QF, c_Q, n_Q in _batches(
        model, questions, layer, "key", range(len(questions.token_GBT))
    ):
        np.add.at(pooled_NF, n_Q, key_QF * questions.weight_C[c_Q, None])
        at = c_Q == questions.bare
        bare_NF[n_Q[at]] = key_QF[at]
    return pooled_NF, bare_NF


def compute_values(
    model: Model, questions: PackedPrompts, layer: int, part: str = "residual"
) -> np.ndarray:
    """What the bare prompts hold at their subjects [N, D]: the "residual" stream after a layer, or
    its "mlp"'s output.
    """
    value_ND = np.zeros((questions.n_requests, model.config.D), np.float32)
    holding = np.flatnonzero(
        np.any(questions.place_GQ3[..., 2] // questions.n_requests == questions.bare, axis=1)
    )
    for value_QD, c_Q, n_Q in _batches(model, questions, layer, part, holding):
        at = c_Q == questions.bare
        value_ND[n_Q[at]] = value_QD[at]
    return value_ND


def _batches(
    model: Model, questions: PackedPrompts, layer: int, part: str, chosen
) -> Iterator[tuple[np.ndarray, ...]]:
    """For each batch: what is asked for at its subjects, their templates and their requests."""
    shared = (
        shard_batch(model.mesh, "__", questions.shared_CP),
        shard_batch(model.mesh, "_", questions.n_shared_C),
    )
    cache = prefill_shared(model, shared[0], jnp.int32(layer))
    for g in chosen:
        arrays = (questions.token_GBT, questions.offset_GBT, questions.segment_GBT)
        rows = (shard_batch(model.mesh, "BT", array[g]) for array in arrays)
        template_B = shard_batch(model.mesh, "B", questions.template_GB[g])
        found_Q3 = questions.place_GQ3[g]
        found = read_positions(
            model,
            cache,
            shared[1],
            *rows,
            template_B,
            np.maximum(found_Q3[:, :2], 0),
            jnp.int32(layer),
            part,
        )
        real = found_Q3[:, 2] >= 0
        yield np.asarray(found)[real], *np.divmod(found_Q3[real, 2], questions.n_requests)


@jax.jit
def prefill_shared(model: Model, token_CP, layer):
    """The keys and values of the templates' shared tokens in layers 0 to `layer`."""
    position_CP = jnp.broadcast_to(jnp.arange(token_CP.shape[1]), token_CP.shape)
    return run_layers_with_kv(
        model, embed(model, token_CP, position_CP), causal_attention(position_CP), 0, layer + 1
    )[1]


@functools.partial(jax.jit, static_argnames="part")
def read_positions(
    model: Model,
    cache,
    n_shared_C,
    token_BT,
    offset_BT,
    segment_BT,
    template_B,
    place_Q2,
    layer,
    part: str,
):
    """An activation (one of ACTIVATIONS) at positions of rows that attend to their template's
    shared tokens [Q, ...].
    """
    position_BT = n_shared_C[template_B][:, None] + offset_BT
    own = causal_attention(position_BT, segment_BT)
    P = cache[0].shape[3]
    shared_BTP = jnp.broadcast_to(
        (jnp.arange(P) < n_shared_C[template_B][:, None])[:, None], (*token_BT.shape, P)
    )
    cached = jax.tree.map(lambda array_LCKPH: array_LCKPH[:, template_B], cache)
    attending = AttentionContext(
        position_BT, jnp.concatenate([shared_BTP, own.mask_BTS], axis=-1), cached
    )
    h_BTD = run_layers(model, embed(model, token_BT, position_BT), attending, 0, layer)
    found = run_layer_at_positions(model, h_BTD, attending, layer, (place_Q2[:, 0], place_Q2[:, 1]))
    return replicate(model.mesh, found[ACTIVATIONS.index(part)])
