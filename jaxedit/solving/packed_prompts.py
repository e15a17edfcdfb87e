"""Requests up to their subjects, packed into rows for reading keys and values in bulk.

Only tokens up to the subject's last one matter. Those with which a template begins are the same for
all requests, so they are run once, and the requests' own tokens are packed into rows that attend to
them:

    requests: "{} lives in" (Ann), "{} sings" (Bob Lee)        templates: "{}", "So. {}"

                    shared beginning (O)     a row (T): own tokens of all requests in a template
    template 0      (nothing)                Bob  Lee  Ann
    template 1      So   .                   Bob  Lee  Ann
    segment                                  1    1    2
    position        0    1                   2    3    2      (in template 1)

A token attends to its template's beginning and to earlier tokens of its own segment. Keys are read
at Lee and Ann.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.edits.request import Request
from jaxedit.mesh import platform
from jaxedit.models.model import Model
from jaxedit.models.packing import pack_first_fit, pad_tokens
from jaxedit.rounding import ceil_div, round_up
from jaxedit.solving.prompt_batch import PREFIX_STEP
from jaxedit.solving.prompts import fact_token_of, tokenise_prompt, up_to_fact

POOLINGS = ("group_means", "mean")
# The most rows of a batch and device. Where rows are of KEY_ROW_TOKENS or a little more, this
# bounds memory and keeps products large. On accelerators each batch reads, and on several gathers,
# the weights anew.
ROWS_PER_BATCH = 32
ACCELERATOR_ROWS_PER_BATCH = 128
# So many requests are packed into rows of at least so many tokens.
MANY_REQUESTS = 16
KEY_ROW_TOKENS = 64


class PackedPrompts(NamedTuple):
    """Requests up to their subjects, in each context template and bare, packed for many readings.

    Each row holds tokens of requests in one template only, behind the tokens that all of them begin
    with there. The requests Ann and Bob Lee in the templates "{}" and "So. {}", in one batch (G =
    1) of two rows, every word one token:

        c  shared_CO   n_shared_C  weight_C
        0  0 0 ...     0           1/2
        1  So . 0 ...  2           1/2

        b  template_GB  token_GBT          offset_GBT   segment_GBT
        0  0            Bob Lee Ann 0 ...  0 1 0 0 ...  1 1 2 0 ...
        1  1            Bob Lee Ann 0 ...  0 1 0 0 ...  1 1 2 0 ...

        q  place_GQ4
        0  0 1 0 1     row 0, column 1 holds in template 0 the last token of request 1, Lee
        1  0 2 0 0     Ann
        2  1 1 1 1     Lee behind "So."
        3  1 2 1 0     Ann behind "So."

    Attributes:
      shared_CO: what begins every request in a template, padded; the bare prompt is a template.
      n_shared_C: how many tokens that are.
      token_GBT: batches of rows.
      offset_GBT: each token's position, counted from the end of the shared ones.
      segment_GBT: which tokens of a row belong together, from 1 on; 0: padding.
      template_GB: the template of each row.
      place_GQ4: row, column, template and request of each last token; -1: padding.
      weight_C: how much each template counts in a request's key.
      bare: the template that is the bare prompt.
      n_requests: I.
    """

    shared_CO: np.ndarray
    n_shared_C: np.ndarray
    token_GBT: np.ndarray
    offset_GBT: np.ndarray
    segment_GBT: np.ndarray
    template_GB: np.ndarray
    place_GQ4: np.ndarray
    weight_C: np.ndarray
    bare: int
    n_requests: int


def pack_prompts(
    model: Model,
    requests: list[Request],
    groups: tuple[tuple[str, ...], ...],
    pooling: str,
    fact_token: str = "subject_last",
) -> PackedPrompts:
    """Tokenise and pack requests in groups of templates.

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
    weights = _template_weights(groups, pooling)
    tokens_CI = _tokens_up_to_fact(model, requests, list(weights), fact_token)

    # What all requests begin with in a template, and what is their own.
    n_shared_C = np.array([_n_shared(token_lists) for token_lists in tokens_CI], np.int32)
    shared = [token_lists[0][:n] for n, token_lists in zip(n_shared_C, tokens_CI, strict=True)]
    own_CI = [
        [tokens[n:] for tokens in token_lists]
        for n, token_lists in zip(n_shared_C, tokens_CI, strict=True)
    ]
    width = round_up(max(1, int(n_shared_C.max())), PREFIX_STEP)
    return PackedPrompts(
        shared_CO=pad_tokens(shared, len(shared), width),
        n_shared_C=n_shared_C,
        **_pack(own_CI, model.mesh),
        weight_C=np.array(list(weights.values()), np.float32),
        bare=list(weights).index("{}"),
        n_requests=len(requests),
    )


def _template_weights(groups: tuple[tuple[str, ...], ...], pooling: str) -> dict[str, float]:
    """Weigh the templates; the bare prompt is always among them, if need be with weight 0."""
    n_templates = sum(map(len, groups))
    weights = dict.fromkeys([*(template for group in groups for template in group), "{}"], 0.0)
    for group in groups:
        in_group_means = 1 / (len(groups) * len(group))
        for template in group:
            weights[template] += in_group_means if pooling == "group_means" else 1 / n_templates
    return weights


def _tokens_up_to_fact(
    model: Model, requests: list[Request], templates: list[str], fact_token: str
) -> list[list[list[int]]]:
    """Tokenise each request in each template; return tokens_CI, cut behind the fact's token."""
    tokenizer = model.tokenizer
    fact_tokens = [fact_token_of(tokenizer, request, fact_token) for request in requests]
    tokens_CI = []
    for template in templates:
        token_lists = []
        for request, at in zip(requests, fact_tokens, strict=True):
            row = tokenise_prompt(
                tokenizer, template, request.prompt, request.subject, fact_token=at
            )
            token_lists.append(up_to_fact(row).tokens)
        tokens_CI.append(token_lists)
        lengths = list(map(len, token_lists))
        longest = requests[int(np.argmax(lengths))]
        about = f"the request {longest.summary[:80]!r} in its templates"
        model.config.check_length(max(lengths), about)
    return tokens_CI


def _n_shared(token_lists: list[list[int]]) -> int:
    """Count the tokens that begin all lists.

    A request's last token is always its own, and one request alone shares nothing.
    """
    if len(token_lists) == 1:
        return 0
    shortest = min(map(len, token_lists)) - 1
    for position in range(shortest):
        if len({tokens[position] for tokens in token_lists}) > 1:
            return position
    return shortest


def rows_per_batch(mesh: Mesh) -> int:
    """Return how many rows a batch has at the most, on all devices together."""
    on_cpu = platform(mesh) == "cpu"
    per_device = ROWS_PER_BATCH if on_cpu else ACCELERATOR_ROWS_PER_BATCH
    return per_device * mesh.shape["data"]


def _pack(own_CI: list[list[list[int]]], mesh: Mesh) -> dict[str, np.ndarray]:
    """Pack the requests' own tokens; return the fields of `PackedPrompts` with axis G."""
    # Rows of one template each, as (template, requests that lie in the row).
    longest = max(len(tokens) for token_lists in own_CI for tokens in token_lists)
    T = round_up(longest, PREFIX_STEP)
    if len(own_CI[0]) >= MANY_REQUESTS:
        T = max(T, KEY_ROW_TOKENS)
    rows = [
        (template, members)
        for template, token_lists in enumerate(own_CI)
        for members in pack_first_fit(list(map(len, token_lists)), [T])
    ]

    # As few batches as there can be, all of one shape, whose rows the devices share evenly.
    n_data = mesh.shape["data"]
    G = ceil_div(len(rows), rows_per_batch(mesh))
    B = n_data * ceil_div(len(rows), G * n_data)
    token_GBT, offset_GBT, segment_GBT = np.zeros((3, G, B, T), np.int32)
    template_GB = np.zeros((G, B), np.int32)
    places: list[list[tuple[int, int, int, int]]] = [[] for _ in range(G)]
    for r, (template, members) in enumerate(rows):
        g, b = divmod(r, B)
        template_GB[g, b] = template
        end = 0
        for segment, request in enumerate(members, start=1):
            tokens = own_CI[template][request]
            start, end = end, end + len(tokens)
            token_GBT[g, b, start:end] = tokens
            offset_GBT[g, b, start:end] = np.arange(len(tokens))
            segment_GBT[g, b, start:end] = segment
            places[g].append((b, end - 1, template, request))

    # Batches hold different numbers of last tokens.
    place_GQ4 = np.full((G, max(map(len, places)), 4), -1, np.int32)
    for g, in_batch in enumerate(places):
        place_GQ4[g, : len(in_batch)] = in_batch
    return dict(
        token_GBT=token_GBT,
        offset_GBT=offset_GBT,
        segment_GBT=segment_GBT,
        template_GB=template_GB,
        place_GQ4=place_GQ4,
    )
