"""Texts packed into rows of equal length, with segment masks and restarted positions.

Hardly anything is then computed for padding. Rows come in several widths, so that short texts do
not pay for the longest."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ROW_TOKENS = 16  # widths of rows are multiples of this

NARROW = 64  # rows that are no wider are not halved: attention over them is cheap

BATCH_TOKENS = 2048  # positions in one call and device; bounds memory

FEW_ROWS = 8  # up to so many rows a device, their number is rounded up to a power of two

Tokens = list[int] | np.ndarray  # of one text


class Packed(NamedTuple):
    """Texts laid into rows. `segment` is the text's index plus one, 0 where nothing lies; each text
    is whole in its row.
    """

    token_GBT: list[np.ndarray]  # G batches, those of rows of one width of the same shape
    position_GBT: list[np.ndarray]
    segment_GBT: list[np.ndarray]
    group_GB: list[np.ndarray]  # what the texts of a row have in common
    n_texts: int


def pack(token_lists: Sequence[Tokens], n_data: int = 1, groups: list[int] | None = None) -> Packed:
    """Packs token lists, longest first, each into the first row with room for it.

    Args:
      token_lists: at least one text, each with at least one token.
      n_data: devices the rows are split over; the number of rows in a batch is a multiple of it.
      groups: for each list a number; a row holds lists of one number only.
    """
    sizes, groups = list(map(len, token_lists)), groups or [0] * len(token_lists)
    widths = row_widths(sizes, BATCH_TOKENS * n_data)
    rows: list[list[int]] = []
    for group in dict.fromkeys(groups):
        members = [i for i, of_text in enumerate(groups) if of_text == group]
        rows += [
            [members[i] for i in row] for row in pack_first_fit([sizes[i] for i in members], widths)
        ]
    batches = []
    for width in widths:
        wide = [row for row in rows if bucket_for(sizes[row[0]], widths) == width]
        for first, B in _batches(len(wide), width, n_data):
            batch = wide[first : first + B]
            group_B = [groups[row[0]] for row in batch]
            group_B = np.array(group_B + group_B[-1:] * (B - len(batch)), np.int32)
            batches.append((*rows_to_arrays(batch, token_lists, B, width), group_B))
    return Packed(*map(list, zip(*batches, strict=True)), n_texts=len(token_lists))


def row_widths(sizes: list[int], batch_tokens: int) -> list[int]:
    """How wide rows are: as the longest text, and half as wide again and again while what fits the
    half fills a batch.

    Attention is computed over whole rows: in rows as wide as the one longest text, short texts
    would pay for it."""
    widths = [round_up(max(sizes), ROW_TOKENS)]
    while widths[-1] > NARROW:
        half = round_up(widths[-1] // 2, ROW_TOKENS)
        if sum(size for size in sizes if size <= half) < batch_tokens:
            break
        widths.append(half)
    return widths


def round_up(n: int, step: int) -> int:
    """The least multiple of `step` that is at least n."""
    return step * -(-n // step)


def bucket_for(size: int, widths: list[int]) -> int:
    """The narrowest row that holds a text of so many tokens."""
    return min(width for width in widths if width >= size)


def pack_first_fit(sizes: list[int], widths: list[int]) -> list[list[int]]:
    """Rows as lists of indices, the largest first, each put into the first row with room for it.

    A new row is the narrowest that holds the text it begins with: `width_of` the first.
    """
    rows: list[list[int]] = []
    with_room: dict[int, int] = {}  # row -> room, of those where the smallest still fits
    smallest = min(sizes, default=0)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, left in with_room.items() if left >= sizes[i]), None)
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
    """Batches of one shape that hold rows of a width: the first row of each, and how many rows it
    has room for.
    """
    if not n_rows:
        return []
    n_batches = math.ceil(n_rows * width / (BATCH_TOKENS * n_data))
    per_device = math.ceil(n_rows / (n_batches * n_data))
    if (
        per_device <= FEW_ROWS
    ):  # a handful of prompts: few shapes, so that not every request compiles its own
        per_device = 1 << (per_device - 1).bit_length()
    B = n_data * per_device
    return [(first, B) for first in range(0, n_rows, B)]


def rows_to_arrays(
    rows: list[list[int]], token_lists: Sequence[Tokens], n_rows: int, width: int
) -> tuple[np.ndarray, ...]:
    """Tokens, positions and segments [n_rows, width] of rows of texts; empty rows are added at the
    end.
    """
    token_BT, position_BT, segment_BT = np.zeros((3, n_rows, width), np.int32)
    for r, texts in enumerate(rows):
        at = 0
        for text in texts:
            span = slice(at, at + len(token_lists[text]))
            token_BT[r, span] = token_lists[text]
            position_BT[r, span] = np.arange(len(token_lists[text]))
            segment_BT[r, span] = text + 1
            at = span.stop
    return token_BT, position_BT, segment_BT


def pad_tokens(token_lists: list[list[int]], n_rows: int, width: int) -> np.ndarray:
    """Token lists as [n_rows, width], filled up with zeros on the right and below."""
    token_BT = np.zeros((n_rows, width), np.int32)
    for b, tokens in enumerate(token_lists):
        token_BT[b, : len(tokens)] = tokens
    return token_BT
