"""Gathering second moments from texts: one pass for any number of layers, stopping after the last
one asked for.
"""

import functools
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.distributed import broadcast_flag, map_over_processes
from jaxedit.files import write_atomic
from jaxedit.mesh import device_put_global, parameter_sharding, shard_batch, to_host
from jaxedit.models.decoder import PRECISION
from jaxedit.models.layers import causal_attention, embed, run_layer
from jaxedit.models.model import Model
from jaxedit.models.packing import (
    BATCH_TOKENS,
    ROW_TOKENS,
    pack_first_fit,
    round_up,
    rows_to_arrays,
)
from jaxedit.stats.second_moments import Stats

TEXTS_AT_ONCE = 256  # so many texts are tokenised at a time, by each process
GROUP_TOKENS = (
    16384  # texts are packed in groups of about so many tokens for each device along `data`
)
SAVE_EVERY_S = 60


def collect_stats(
    model: Model,
    texts: list[str],
    layers: list[int] | tuple[int, ...],
    *,
    max_tokens: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    corpus: str = "",
    resume: Path | None = None,
    on_tokens: Callable[[int, int], None] = lambda done, total: None,
) -> Stats:
    """Second moments of the keys of a model over texts.

    Float32 sums within a batch of about BATCH_TOKENS positions a device; between batches the sums
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
      resume: a file for the sums so far, written once a minute and where the pass is interrupted;
        the same call goes on from it.
      on_tokens: called with tokens done and tokens there will be.

    Raises:
      ValueError: without texts or layers, on a layer the model lacks, a limit below one, or a file
        of another pass.
    """
    layers = sorted(set(layers))
    _check(model, layers, {"max_tokens": max_tokens, "max_length": max_length})
    max_length = max_length or min(model.config.P, model.config.window or model.config.P)
    token_lists, n_read = _ordered_tokens(model, texts, max_tokens, max_length, seed)
    model.config.check_length(max(map(len, token_lists)), "a text of the corpus")
    total = sum(map(len, token_lists))
    asked = dict(corpus=corpus, max_tokens=max_tokens, max_length=max_length, seed=seed)
    made_from = asked | _provenance(model, texts)
    n_done, sums = _resumed(model, resume, made_from, layers)
    n_tokens, n_data = sum(map(len, token_lists[:n_done])), model.mesh.shape["data"]
    saved_at = time.monotonic()
    try:
        for group in _groups(token_lists[n_done:], GROUP_TOKENS * n_data):
            on_tokens(n_tokens, total)
            sums = _sum_group(model, _batches(group, n_data), layers, sums)
            n_done, n_tokens = n_done + len(group), n_tokens + sum(map(len, group))
            if (
                resume is not None
                and n_done < len(token_lists)
                and broadcast_flag(time.monotonic() - saved_at > SAVE_EVERY_S)
            ):
                _save(resume, made_from, layers, n_done, sums)
                saved_at = time.monotonic()
        on_tokens(n_tokens, total)
    except BaseException:
        if (
            resume is not None and n_done and jax.process_count() == 1
        ):  # others may not be there to help gather
            _save(resume, made_from, layers, n_done, sums)
        raise
    if resume is not None and jax.process_index() == 0:
        resume.unlink(missing_ok=True)
    moments = {
        layer: (_total(sums, i) / n_tokens).astype(np.float32) for i, layer in enumerate(layers)
    }
    return Stats.from_moments(
        moments, n_tokens, made_from | {"n_texts": len(token_lists), "n_texts_read": n_read}
    )


def _check(model: Model, layers: list[int], limits: dict[str, int | None]) -> None:
    if not layers or layers[0] < 0 or layers[-1] >= model.config.L:
        raise ValueError(
            f"layers={layers}: {model.metadata.source} has layers 0 to {model.config.L - 1}"
        )
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(
                f"{name}={limit}: expected at least one token, or None for no limit of your own"
            )


def _provenance(model: Model, texts: list[str]) -> dict[str, Any]:
    return {
        "model": model.metadata.source,
        "fingerprint": model.fingerprint,
        "corpus_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "dtype": str(model.dtype),
        "n_edits": len(model.metadata.history),
    }


def shuffle_texts(texts: list[str], seed: int) -> list[str]:
    """The texts in the order in which a pass with this seed reads them."""
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def _ordered_tokens(
    model: Model, texts: list[str], max_tokens: int | None, max_length: int, seed: int
) -> tuple[list[np.ndarray], int]:
    """The tokens of each text that has any, up to the limits, and how many texts were read for
    them.

    Each process tokenises a share of the texts and gets the others' from them.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError("second moments need a list of at least one text")
    token_lists, total, n_read = [], 0, 0
    ordered, at_once = shuffle_texts(texts, seed), TEXTS_AT_ONCE * jax.process_count()
    lots = (ordered[first : first + at_once] for first in range(0, len(ordered), at_once))
    encode = functools.partial(model.tokenizer.encode_many, bos=False, max_length=max_length)
    for tokens in itertools.chain.from_iterable(map_over_processes(lot, encode) for lot in lots):
        n_read += 1
        tokens = tokens[: None if max_tokens is None else max_tokens - total]
        if len(tokens):
            token_lists.append(tokens)
            total += len(tokens)
        if max_tokens is not None and total >= max_tokens:
            break
    if not token_lists:
        raise ValueError(f"the {len(texts)} texts hold no token")
    return token_lists, n_read


def _groups(token_lists: list[np.ndarray], most: int) -> list[list[np.ndarray]]:
    groups: list[list[np.ndarray]] = [[]]
    n_tokens = 0  # of the last
    for tokens in token_lists:
        if groups[-1] and n_tokens + len(tokens) > most:
            groups.append([])
            n_tokens = 0
        groups[-1].append(tokens)
        n_tokens += len(tokens)
    return groups


def _batches(token_lists: list[np.ndarray], n_data: int) -> np.ndarray:
    """Tokens, positions and segments [G, 3, B, T] in batches of one shape.

    Rows are up to a sixteenth longer than they need be: fewer lengths to compile.
    """
    sizes = list(map(len, token_lists))
    longest = round_up(max(sizes), ROW_TOKENS)
    T = round_up(longest, max(ROW_TOKENS, 1 << (longest.bit_length() - 5)))
    rows = pack_first_fit(sizes, [longest])
    G = -(-len(rows) // (n_data * max(1, BATCH_TOKENS // T)))
    B = n_data * -(-len(rows) // (G * n_data))
    return np.moveaxis(np.reshape(rows_to_arrays(rows, token_lists, G * B, T), (3, G, B, T)), 0, 1)


class Sums(NamedTuple):
    """Sums of k k^T and what rounding left out of them, both float32 [E, M, F] on the devices."""

    high_EMF: jax.Array
    low_EMF: jax.Array


def _sum_group(model: Model, batches_GCBT: np.ndarray, layers: list[int], sums: Sums) -> Sums:
    for batch in batches_GCBT:
        placed = (shard_batch(model.mesh, "BT", array) for array in batch)
        sums = add_batch(model, *placed, np.array(layers), sums)
    return sums


def _total(sums: Sums, slot: int) -> np.ndarray:
    """One layer's sum in float64, on the host."""
    return to_host(sums.high_EMF[slot]).astype(np.float64) + to_host(sums.low_EMF[slot])


@jax.jit
def add_batch(model: Model, token_BT, position_BT, segment_BT, layer_E, sums: Sums) -> Sums:
    """The sums with k k^T of a batch's tokens, for each layer asked for; Neumaier's compensated
    addition.
    """
    batch_EMF = _sum_batch(model, token_BT, position_BT, segment_BT, layer_E)
    high_EMF = sums.high_EMF + batch_EMF
    sum_is_larger = jnp.abs(sums.high_EMF) >= jnp.abs(batch_EMF)
    lost_EMF = jnp.where(
        sum_is_larger,
        (sums.high_EMF - high_EMF) + batch_EMF,
        (batch_EMF - high_EMF) + sums.high_EMF,
    )
    return Sums(high_EMF, sums.low_EMF + lost_EMF)


def _sum_batch(model: Model, token_BT, position_BT, segment_BT, layer_E) -> jax.Array:
    """Sum of k k^T over the tokens of a batch, for each layer asked for [E, M, F]."""
    attending = causal_attention(position_BT, segment_BT)
    counts_BT = (segment_BT > 0).astype(jnp.float32)

    def body(layer, carry):
        h_BTD, sum_EMF = carry
        h_BTD, key_BTF = run_layer(model, h_BTD, attending, layer)
        key_QF = (key_BTF * counts_BT[..., None]).reshape(-1, key_BTF.shape[-1])
        slot = jnp.argmax(layer_E == layer)

        def add():
            return sum_EMF.at[slot].add(
                jnp.einsum("QM,QF->MF", key_QF, key_QF, precision=PRECISION)
            )

        sum_EMF = jax.lax.cond(jnp.any(layer_E == layer), add, lambda: sum_EMF)
        return h_BTD, jax.lax.with_sharding_constraint(sum_EMF, sharding)

    shape = (layer_E.shape[0], model.config.F, model.config.F)
    sharding = parameter_sharding(model.mesh, "EMF", shape)
    return jax.lax.fori_loop(
        0, layer_E[-1] + 1, body, (embed(model, token_BT, position_BT), jnp.zeros(shape))
    )[1]


def _resumed(
    model: Model, path: Path | None, made_from: dict[str, Any], layers: list[int]
) -> tuple[int, Sums]:
    """How many texts are done, and the sums so far."""
    from safetensors import SafetensorError, safe_open

    shape = (len(layers), model.config.F, model.config.F)
    sharding = parameter_sharding(model.mesh, "EMF", shape)
    if path is None or not broadcast_flag(path.is_file()):
        zero_EMF = np.zeros(shape, np.float32)
        return 0, Sums(device_put_global(sharding, zero_EMF), device_put_global(sharding, zero_EMF))
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["part"])
            n_done = about["n_texts"]
            sums = Sums(
                device_put_global(sharding, file.get_tensor("high")),
                device_put_global(sharding, file.get_tensor("low")),
            )
    except (SafetensorError, KeyError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not an unfinished pass of jaxedit stats ({error}); remove it to begin anew"
        ) from error
    now = {**made_from, "layers": layers}
    differing = sorted(key for key in now if about["made_from"].get(key) != now[key])
    if differing:
        shown = "; ".join(
            f"{key}: {about['made_from'].get(key)} there, {now[key]} now" for key in differing
        )
        raise ValueError(
            f"{path} is an unfinished pass over something else. {shown}. Remove it to begin anew"
        )
    return n_done, sums


def _save(
    path: Path, made_from: dict[str, Any], layers: list[int], n_texts: int, sums: Sums
) -> None:
    from safetensors.numpy import save

    described = json.dumps({"made_from": {**made_from, "layers": layers}, "n_texts": n_texts})
    content = save(
        {"high": to_host(sums.high_EMF), "low": to_host(sums.low_EMF)}, {"part": described}
    )
    if jax.process_index() == 0:
        write_atomic(path, content)
