"""The rows from which a value is optimised: requests in their templates, as padded arrays.

A row is cut at the fact's token, by default the subject's last one. The request "{} lives in",
"Ann Lee" -> "Paris, France" in the templates "{}" and "So. {}", every word one token:

                           prefix (O)    | suffix (U)
    offset                               | 0     1       2    3       4
    template 0                     Ann   | Lee   lives   in   Paris   ,      France: only predicted
    template 1           So   .    Ann   | Lee   lives   in   Paris   ,
    KL prompt                      Ann   | Lee                               cut: is a
    bare prompt                    Ann   | Lee                               in template 0's row

    the vector is added                    *
    the target is read                                   *    *       *
    the KL term is read                    *

    up to the edited layer   run once    | run once
    layers above it          run once,   | run at every step of the optimisation
                             keys and    |
                             values kept |

The parts that are run once: `jaxedit.solving.prefill`; the steps: `jaxedit.solving.value`.
"""

from typing import NamedTuple

import numpy as np

from jaxedit.edits.edit import Array
from jaxedit.models.packing import pad_tokens
from jaxedit.rounding import ceil_div, round_up
from jaxedit.solving.prompts import TokenisedPrompt, TokenisedRequest, up_to_fact

# Prefixes and suffixes are padded to multiples of these, so that few shapes are compiled.
PREFIX_STEP = 8
SUFFIX_STEP = 2


class PaddedShape(NamedTuple):
    """The static sizes of a `PromptBatch`.

    Attributes:
      prefix: positions that all prefixes are padded to.
      suffix: positions that all suffixes are padded to.
      n_read: positions whose logits the loss reads in each template: tokens of the longest target.
    """

    prefix: int
    suffix: int
    n_read: int


class PromptBatch(NamedTuple):
    """The rows of I requests in C templates as arrays.

    For each request the rows of its templates, then its KL prompt, then its bare prompt. That one
    has a row only where no template begins with it: what a model holds at the fact's token depends
    on the tokens before it alone. Rows of zeros fill the batch up to a multiple of the devices.

    Two requests, "{} lives in" (Ann -> Rome) and "{} sings" (Bob Lee -> a song), in the templates
    "{}" and "So. {}", every word one token:

        b  request_B  token_BT              fact_position_B
        0  0          Ann lives in          0                  first_row_I[0] = bare_row_I[0] = 0
        1  0          So . Ann lives in     2
        2  0          Ann                   0                  kl_row_I[0] = 2
        3  1          Bob Lee sings a       1                  first_row_I[1] = bare_row_I[1] = 3
        4  1          So . Bob Lee sings a  3
        5  1          Bob Lee               1                  kl_row_I[1] = 5

        q     read_row_Q  read_offset_Q  read_target_Q  read_weight_Q
        0, 1  0           2, 2           Rome, Rome     1/2, 0         the shorter target's first
        2, 3  1           2, 2           Rome, Rome     1/2, 0         token again, with weight 0
        4, 5  3           1, 2           a, song        1/4, 1/4
        6, 7  4           1, 2           a, song        1/4, 1/4

    Attributes:
      token_BT: prefixes and suffixes; the last token of a target is only predicted.
      fact_position_B: where the suffix begins.
      request_B: whose row it is.
      first_row_I: the row of each request's first template; the others follow.
      bare_row_I: the row that holds the bare prompt up to the fact's token.
      kl_row_I: the row of the KL prompt.
      read_row_Q: rows of the positions whose logits the loss reads; n_read for each template.
      read_offset_Q: their positions, counted from the fact's token.
      read_target_Q: the target token predicted there.
      read_weight_Q: its weight, 1 / (tokens of the target * C).
    """

    token_BT: Array
    fact_position_B: Array
    request_B: Array
    first_row_I: Array
    bare_row_I: Array
    kl_row_I: Array
    read_row_Q: Array
    read_offset_Q: Array
    read_target_Q: Array
    read_weight_Q: Array


def common_shape(tokenised: list[TokenisedRequest]) -> PaddedShape:
    """Return the smallest shape that holds all these requests."""
    with_target = [row for request in tokenised for row in request.templates]
    without = [row for request in tokenised for row in (request.bare, request.kl)]
    prefix = max(row.fact_position for row in [*with_target, *without])
    # The last token of a target is not in its row.
    suffix = max(len(row.tokens) - 1 - row.fact_position for row in with_target)
    n_read = max(len(row.tokens) - row.first_target for row in with_target)
    return PaddedShape(round_up(prefix, PREFIX_STEP), round_up(suffix, SUFFIX_STEP), n_read)


def to_batch(tokenised: list[TokenisedRequest], shape: PaddedShape, n_data: int) -> PromptBatch:
    """Lay the rows of requests into padded arrays.

    Args:
      tokenised: the requests, in as many templates each.
      shape: that holds them.
      n_data: devices that the rows are split over; the number of rows is a multiple of it.
    """
    rows: list[TokenisedPrompt] = []
    request_of_row: list[int] = []
    first_row, kl_row, bare_row = [], [], []
    reads: list[tuple[int, int, int, float]] = []
    for i, (in_templates, bare, kl) in enumerate(tokenised):
        # The prompt in each template, with the target but for its last token.
        first_row.append(len(rows))
        for row in in_templates:
            reads += _reads(row, len(rows), shape.n_read, len(in_templates))
            rows.append(row._replace(tokens=row.tokens[:-1]))
        # The prompt of the KL term, whose logits are read at the fact's token, its last.
        kl_row.append(len(rows))
        rows.append(kl)
        # The bare prompt, in the first template that begins with it or in a row of its own.
        begins_bare = [up_to_fact(row).tokens == bare.tokens for row in in_templates]
        if any(begins_bare):
            bare_row.append(first_row[-1] + begins_bare.index(True))
        else:
            bare_row.append(len(rows))
            rows.append(bare)
        request_of_row += [i] * (len(rows) - len(request_of_row))

    n_rows = round_up(len(rows), n_data)
    padding = [0] * (n_rows - len(rows))
    read_row, read_offset, read_target, read_weight = zip(*reads, strict=True)
    return PromptBatch(
        token_BT=pad_tokens([row.tokens for row in rows], n_rows, shape.prefix + shape.suffix),
        fact_position_B=np.array([row.fact_position for row in rows] + padding, np.int32),
        request_B=np.array(request_of_row + padding, np.int32),
        first_row_I=np.array(first_row, np.int32),
        bare_row_I=np.array(bare_row, np.int32),
        kl_row_I=np.array(kl_row, np.int32),
        read_row_Q=np.array(read_row, np.int32),
        read_offset_Q=np.array(read_offset, np.int32),
        read_target_Q=np.array(read_target, np.int32),
        read_weight_Q=np.array(read_weight, np.float32),
    )


def _reads(
    row: TokenisedPrompt, row_index: int, n_read: int, n_templates: int
) -> list[tuple[int, int, int, float]]:
    """List the n_read positions of a row whose logits the loss reads.

    Returns:
      For each its row, its offset from the fact's token, the target token that is predicted there
      and the weight. A target token is predicted one position before its own. Behind the end of a
      shorter target its first token is read again, with weight 0.
    """
    n_target = len(row.tokens) - row.first_target
    reads = []
    for k in range(n_read):
        is_real = k < n_target
        position = row.first_target + (k if is_real else 0)
        weight = 1.0 / (n_target * n_templates) if is_real else 0.0
        offset = position - 1 - row.fact_position
        reads.append((row_index, offset, row.tokens[position], weight))
    return reads


def equal_chunks(items: list, largest: int) -> tuple[list[list], int]:
    """Cut a list into as few chunks of one size as there can be, none over the largest.

    Returns:
      The chunks, the last one filled up with its last item, which is to be ignored; and the number
      of items.
    """
    n_chunks = ceil_div(len(items), largest)
    size = ceil_div(len(items), n_chunks)
    n_missing = -len(items) % size
    filled = [*items, *[items[-1]] * n_missing]
    return [filled[i : i + size] for i in range(0, len(filled), size)], len(items)
