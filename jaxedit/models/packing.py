"""Texts packed into rows of equal length, with segment masks and restarted positions.

Hardly anything is then computed for padding. Rows come in several widths, so that short texts do
not pay for the longest:

    token     the  cat  sat  .  |  rain  fell  .  |  0  0
    position   0    1    2   3  |   0     1    2  |  0  0
    segment    1    1    1   1  |   2     2    2  |  0  0     the text's index plus one
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxedit.rounding import ceil_div, next_power_of_two, round_up

ROW_TOKENS = 16  # widths of rows are multiples of this
NARROW = 64  # rows that are no wider are not halved: attention over them is cheap
BATCH_TOKENS = 2048  # positions in one call and device; bounds memory
FEW_ROWS = 8  # up to so many rows a device, their number is rounded up to a power of two

Tokens = list[int] | np.ndarray  # of one text


class Packed(NamedTuple):
    """Texts packed into rows, in batches; each text is whole in its row.

    Attributes:
      token_GBT: tokens of G batches; those with rows of one width have one shape.
      position_GBT: each token's position in its text.
      segment_GBT: the text's index plus one; 0 where nothing lies.
      group_GB: the number that the texts of a row have in common.
      n_texts: how many texts there are.
    """

    token_GBT: list[np.ndarray]
    position_GBT: list[np.ndarray]
    segment_GBT: list[np.ndarray]
    group_GB: list[np.ndarray]
    n_texts: int


def pack(token_lists: Sequence[Tokens], n_data: int = 1, groups: list[int] | None = None) -> Packed:
    """Pack token lists, longest first, each into the first row with room for it.

    Args:
      token_lists: at least one text, each with at least one token.
      n_data: devices the rows are split over; the number of rows in a batch is a multiple of it.
      groups: for each list a number; a row holds lists of one number only.
    """
    sizes = list(map(len, token_lists))
    groups = groups or [0] * len(token_lists)
    widths = row_widths(sizes, BATCH_TOKENS * n_data)

    # Rows as lists of texts, group by group.
    rows: list[list[int]] = []
    for group in dict.fromkeys(groups):
        members = [i for i, of_text in enumerate(groups) if of_text == group]
        packed_rows = pack_first_fit([sizes[i] for i in members], widths)
        rows += [[members[i] for i in row] for row in packed_rows]

    # Batches of rows of one width. Rows that fill up a batch belong to the last row's group.
    batches = []
    for width in widths:
        wide = [row for row in rows if bucket_for(sizes[row[0]], widths) == width]
        for first, B in _batches(len(wide), width, n_data):
            batch = wide[first : first + B]
            group_of_row = [groups[row[0]] for row in batch]
            group_of_row += group_of_row[-1:] * (B - len(batch))
            arrays = rows_to_arrays(batch, token_lists, B, width)
            batches.append((*arrays, np.array(group_of_row, np.int32)))
    return Packed(*map(list, zip(*batches, strict=True)), n_texts=len(token_lists))


def row_widths(sizes: list[int], batch_tokens: int) -> list[int]:
    """Choose the widths of rows: the longest text's, and its half while that fills a batch.

    Attention is computed over whole rows: in rows as wide as the one longest text, short texts
    would pay for it.

    Args:
      sizes: the texts' tokens.
      batch_tokens: how many tokens fill a batch.

    Returns:
      Widths in descending order, multiples of ROW_TOKENS.
    """
    widths = [round_up(max(sizes), ROW_TOKENS)]
    while widths[-1] > NARROW:
        half = round_up(widths[-1] // 2, ROW_TOKENS)
        # A width that fewer texts than a batch would use is not worth a compilation.
        if sum(size for size in sizes if size <= half) < batch_tokens:
            break
        widths.append(half)
    return widths


def bucket_for(size: int, widths: list[int]) -> int:
    """Return the narrowest row that holds a text of so many tokens."""
    return min(width for width in widths if width >= size)


def pack_first_fit(sizes: list[int], widths: list[int]) -> list[list[int]]:
    """Pack texts into rows by first-fit decreasing; return rows as lists of texts' indices.

    The largest text comes first, and each goes into the first row with room for it. A new row is
    the narrowest that holds the text it begins with (`bucket_for`).

    Args:
      sizes: the texts' tokens.
      widths: the widths that rows may have.
    """
    rows: list[list[int]] = []
    # Row -> its room, for rows where at least the smallest text still fits: full rows are
    # forgotten, so that the search stays short.
    with_room: dict[int, int] = {}
    smallest = min(sizes, default=0)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, room in with_room.items() if room >= sizes[i]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            with_room[row] = bucket_for(sizes[i], widths)
        rows[row].append(i)
        with_room[row] -= sizes[i]
        if with_room[row] < smallest:
            del with_room[row]
    return rows


def _batches(n_rows: int, width: int, n_data: int) -> list[tuple[int, int]]:
    """Divide rows of a width into batches of one shape.

    Returns:
      For each batch its first row, and how many rows it has room for.
    """
    if not n_rows:
        return []
    n_batches = ceil_div(n_rows * width, BATCH_TOKENS * n_data)
    per_device = ceil_div(n_rows, n_batches * n_data)
    # A handful of prompts: few shapes, so that not every request compiles its own.
    if per_device <= FEW_ROWS:
        per_device = next_power_of_two(per_device)
    B = n_data * per_device
    return [(first, B) for first in range(0, n_rows, B)]


def rows_to_arrays(
    rows: list[list[int]], token_lists: Sequence[Tokens], n_rows: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay rows of texts out as tokens, positions and segments, each int32 [n_rows, width].

    Empty rows are added at the end.

    Args:
      rows: lists of texts' indices.
      token_lists: the texts.
      n_rows: how many rows there are to be.
      width: of a row.
    """
    token_BT, position_BT, segment_BT = np.zeros((3, n_rows, width), np.int32)
    for b, texts in enumerate(rows):
        start = 0
        for text in texts:
            end = start + len(token_lists[text])
            token_BT[b, start:end] = token_lists[text]
            position_BT[b, start:end] = np.arange(end - start)
            segment_BT[b, start:end] = text + 1
            start = end
    return token_BT, position_BT, segment_BT


def pad_tokens(token_lists: list[list[int]], n_rows: int, width: int) -> np.ndarray:
    """Pad token lists with zeros on the right and below to int32 [n_rows, width]."""
    token_BT = np.zeros((n_rows, width), np.int32)
    for b, tokens in enumerate(token_lists):
        token_BT[b, : len(tokens)] = tokens
    return token_BT
