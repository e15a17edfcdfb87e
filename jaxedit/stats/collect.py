"""Second moments of MLP keys over texts, for any number of layers in one pass of the model.

For each layer asked for, sum_t k_t k_t^T over the tokens t of the texts, divided by their number
(2202.05262, eq. 2). The pass stops after the last of the layers.
"""

import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxedit.distributed import broadcast_flag, is_first_process, map_over_processes
from jaxedit.files import local_path
from jaxedit.mesh import shard_batch
from jaxedit.models.fingerprints import fingerprints_without_bos
from jaxedit.models.model import Model
from jaxedit.models.packing import BATCH_TOKENS, ROW_TOKENS, pack_first_fit, rows_to_arrays
from jaxedit.models.texts import list_texts
from jaxedit.rounding import ceil_div, check_whole_number, is_whole_number, round_up
from jaxedit.stats.gradients import add_batch_with_gradients
from jaxedit.stats.second_moments import Stats
from jaxedit.stats.sums import Sums, add_batch, read_sums, total_of, write_sums, zero_sums

TEXTS_PER_CALL = 256  # so many texts are tokenised at a time, by each process
GROUP_TOKENS = 16384  # texts are packed in groups of about so many tokens a device along `data`
SAVE_EVERY_S = 60


def ignore_progress(n_done: int, n_total: int) -> None:
    """Do nothing with a pass's progress."""


def collect_stats(
    model: Model,
    texts: list[str],
    layers: list[int] | tuple[int, ...],
    *,
    max_tokens: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    corpus: str = "",
    gradients: bool = False,
    resume: str | os.PathLike[str] | None = None,
    on_tokens: Callable[[int, int], None] = ignore_progress,
) -> Stats:
    """Collect the second moments of a model's MLP keys over texts.

    Sums are float32 within a batch of about BATCH_TOKENS positions a device; between batches they
    carry what rounding left out, as good as float64. They stay on the devices, split as the weights
    are; padding does not count.

    Args:
      model: its edits count, but its base weights' fingerprint is what the stats remember.
      texts: taken verbatim, in an order drawn from `seed`, without a begin-of-text token, as the
        ROME repository does.
      layers: whose second MLP weight's input.
      max_tokens: stop after so many; absent: all.
      max_length: texts are cut after so many tokens; absent: after the model's positions as the
        ROME repository does, or its sliding window.
      seed: of the order.
      corpus: a name for the texts, remembered.
      gradients: whether those of output gradients are collected too (`jaxedit.stats.gradients`);
        the pass then goes through all layers, and back.
      resume: a file for the sums so far, written once a minute and where the pass is interrupted;
        the same call goes on from it.
      on_tokens: called with tokens done and tokens there will be.

    Raises:
      ValueError: on texts, layers or numbers that cannot be, or a file of another pass.
    """
    # The texts as tokens, in their order, within the limits.
    texts, layers = _list_texts(texts), _list_layers(model, layers)
    _check_numbers(seed, max_tokens=max_tokens, max_length=max_length)
    resume = None if resume is None else local_path(resume)
    max_length = max_length or min(model.config.P, model.config.window or model.config.P)
    token_lists, n_read = _ordered_tokens(model, texts, max_tokens, max_length, seed)
    model.config.check_length(max(map(len, token_lists)), "a text of the corpus")

    # What the pass is of, remembered in the result and in the file of an unfinished pass.
    settings = dict(corpus=corpus, max_tokens=max_tokens, max_length=max_length, seed=seed)
    made_from = settings | _provenance(model, texts) | ({"gradients": True} if gradients else {})

    n_done, sums = 0, zero_sums(model, layers, gradients)
    # The first process decides for all: only it has written the file.
    if resume is not None and broadcast_flag(resume.is_file()):
        n_done, sums = read_sums(model, resume, made_from, layers)
    sums = _sum_texts(model, token_lists, n_done, sums, layers, made_from, resume, on_tokens)

    n_tokens = sum(map(len, token_lists))
    moments, of_gradients = (_average(part, layers, n_tokens) for part in (sums, sums.of_gradients))
    counts = {"n_texts": len(token_lists), "n_texts_read": n_read}
    return Stats.from_moments(moments, n_tokens, made_from | counts, of_gradients)


def _average(sums: Sums | None, layers: list[int], n_tokens: int) -> dict[int, np.ndarray]:
    """Divide each layer's sum by the number of tokens; none where nothing was summed."""
    if sums is None:
        return {}
    return {
        layer: (total_of(sums, e) / n_tokens).astype(np.float32) for e, layer in enumerate(layers)
    }


def _list_texts(texts: Any) -> list[str]:
    """Return the texts, of which there is at least one."""
    found = list_texts(texts, "a pass for second moments")
    if not found:
        raise ValueError("second moments need a list of at least one text")
    return found


def _check_numbers(seed: int, **limits: int | None) -> None:
    check_whole_number("seed", seed, least=0)
    for name, limit in limits.items():
        if limit is not None:
            check_whole_number(name, limit, least=1)


def _list_layers(model: Model, layers: Any) -> list[int]:
    """Return the layers, each once and in order.

    Raises:
      ValueError: where they are no list of whole numbers, are none, or the model lacks one.
    """
    source, most = model.metadata.source, model.config.L - 1
    try:
        found = list(layers)
    except TypeError as error:
        raise ValueError(f"layers={layers!r}: expected a list of layers, e.g. [3, 4]") from error
    are_whole = all(is_whole_number(layer) for layer in found)
    if not (found and are_whole and min(found) >= 0 and max(found) <= most):
        raise ValueError(f"layers={found}: {source} has layers 0 to {most}")
    return sorted({int(layer) for layer in found})


def _provenance(model: Model, texts: list[str]) -> dict[str, Any]:
    """Describe the model and the texts, so that a file of another pass is recognised."""
    prints = fingerprints_without_bos(model.fingerprints, model.tokenizer)
    return {
        "model": model.metadata.source,
        "fingerprint": model.fingerprint,
        "fingerprints": prints._asdict(),
        "corpus_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "dtype": str(model.dtype),
        "n_edits": len(model.metadata.history),
    }


def shuffle_texts(texts: list[str], seed: int) -> list[str]:
    """Return the texts in the order in which a pass with this seed reads them."""
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def _ordered_tokens(
    model: Model, texts: list[str], max_tokens: int | None, max_length: int, seed: int
) -> tuple[list[np.ndarray], int]:
    """Tokenise texts in their order, up to the limits; each process does a share of them.

    Returns:
      The tokens of each text that has any, and how many texts were read for them.
    """
    ordered, per_call = shuffle_texts(texts, seed), TEXTS_PER_CALL * jax.process_count()
    chunks = (ordered[first : first + per_call] for first in range(0, len(ordered), per_call))
    encode = functools.partial(model.tokenizer.encode_many, bos=False, max_length=max_length)
    tokenised = (map_over_processes(chunk, encode) for chunk in chunks)

    token_lists, n_tokens, n_read = [], 0, 0
    for tokens in itertools.chain.from_iterable(tokenised):
        n_read += 1
        if max_tokens is not None:
            tokens = tokens[: max_tokens - n_tokens]
        if len(tokens):
            token_lists.append(tokens)
            n_tokens += len(tokens)
        if max_tokens is not None and n_tokens >= max_tokens:
            break
    if not token_lists:
        raise ValueError(f"the {len(texts)} texts hold no token")
    return token_lists, n_read


def _sum_texts(
    model: Model,
    token_lists: list[np.ndarray],
    n_done: int,
    sums: Sums,
    layers: list[int],
    made_from: dict[str, Any],
    resume: Path | None,
    on_tokens: Callable[[int, int], None],
) -> Sums:
    """Add the texts from `n_done` on to the sums, saving these as `collect_stats` says."""
    n_tokens, n_total = sum(map(len, token_lists[:n_done])), sum(map(len, token_lists))
    n_data = model.mesh.shape["data"]
    saved_at = time.monotonic()
    try:
        for group in group_texts(token_lists[n_done:], GROUP_TOKENS * n_data):
            on_tokens(n_tokens, n_total)
            # Together, so that what an interrupt saves is of whole groups.
            sums, n_done = _sum_group(model, group, n_data, layers, sums), n_done + len(group)
            n_tokens += sum(map(len, group))
            # Once a minute, by the first process's clock.
            if (
                resume is not None
                and n_done < len(token_lists)
                and broadcast_flag(time.monotonic() - saved_at > SAVE_EVERY_S)
            ):
                write_sums(resume, made_from, layers, n_done, sums)
                saved_at = time.monotonic()
        on_tokens(n_tokens, n_total)
    except BaseException:
        # Several processes gather the sums together, and the others may not be there to help.
        if resume is not None and n_done and jax.process_count() == 1:
            write_sums(resume, made_from, layers, n_done, sums)
        raise
    if resume is not None and is_first_process():
        resume.unlink(missing_ok=True)
    return sums


def _sum_group(
    model: Model, group: list[np.ndarray], n_data: int, layers: list[int], sums: Sums
) -> Sums:
    """Add the texts of one group to the sums."""
    for batch_3BT in pack_batches(group, n_data):
        placed = (shard_batch(model.mesh, "BT", array_BT) for array_BT in batch_3BT)
        if sums.of_gradients is None:
            sums = add_batch(model, *placed, np.array(layers), sums)
        else:
            sums = add_batch_with_gradients(model, *placed, tuple(layers), sums)
    return sums


def group_texts(token_lists: list[np.ndarray], max_tokens: int) -> list[list[np.ndarray]]:
    """Divide texts into groups of at most so many tokens; a longer text is one by itself."""
    groups: list[list[np.ndarray]] = [[]]
    n_tokens = 0  # of the last group
    for tokens in token_lists:
        if groups[-1] and n_tokens + len(tokens) > max_tokens:
            groups.append([])
            n_tokens = 0
        groups[-1].append(tokens)
        n_tokens += len(tokens)
    return groups


def pack_batches(token_lists: list[np.ndarray], n_data: int) -> np.ndarray:
    """Pack texts into batches of one shape: tokens, positions and segments [G, 3, B, T].

    Rows are up to a sixteenth longer than they need be: fewer lengths to compile.

    Args:
      token_lists: the texts.
      n_data: devices the rows are split over.
    """
    sizes = list(map(len, token_lists))
    longest = round_up(max(sizes), ROW_TOKENS)
    sixteenth = 1 << (longest.bit_length() - 5)  # of the largest power of two that is no longer
    T = round_up(longest, max(ROW_TOKENS, sixteenth))
    rows = pack_first_fit(sizes, [longest])

    # Few batches of about BATCH_TOKENS positions a device, with the rows spread evenly over them.
    G = ceil_div(len(rows), n_data * max(1, BATCH_TOKENS // T))
    B = n_data * ceil_div(len(rows), G * n_data)
    arrays_3GBT = np.reshape(rows_to_arrays(rows, token_lists, G * B, T), (3, G, B, T))
    return np.moveaxis(arrays_3GBT, 0, 1)
