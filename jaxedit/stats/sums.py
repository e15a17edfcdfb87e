"""Running sums of k k^T over batches of tokens, as good as float64, and their file.

Two float32 arrays hold a sum: `high` is the rounded sum, `low` the sum of what rounding left out of
it (Neumaier's compensated addition). Their total in float64 is taken once, at the end.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxedit.distributed import is_first_process
from jaxedit.files import parse_json, shorten_json, to_safetensors, write_atomic
from jaxedit.mesh import device_put_global, parameter_sharding, to_host
from jaxedit.models.layers import causal_attention, embed, run_layer
from jaxedit.models.model import Model
from jaxedit.models.ops import linear

GRADIENTS = ("gradients/high", "gradients/low")  # of a file, beside "high" and "low"


class Sums(NamedTuple):
    """Sums of k k^T and what rounding left out of them, both float32 [E, M, F] on the devices.

    Attributes:
      high_EMF: the rounded sums.
      low_EMF: what was left out.
      of_gradients: the same of output gradients g g^T, [E, D, D], where they are gathered too.
    """

    high_EMF: jax.Array
    low_EMF: jax.Array
    of_gradients: "Sums | None" = None


def zero_sums(model: Model, layers: list[int], gradients: bool = False) -> Sums:
    """Make the sums of no token, split over the devices as stored weights are."""
    E, D = len(layers), model.config.D
    of_gradients = None
    if gradients:
        of_gradients = _place(model, *np.zeros((2, E, D, D), np.float32))
    sums = _place(model, *np.zeros((2, *_shape(model, layers)), np.float32))
    return sums._replace(of_gradients=of_gradients)


def _place(model: Model, high_EMF: np.ndarray, low_EMF: np.ndarray) -> Sums:
    """Put sums on the devices; those of gradients have the letters of keys."""
    sharding = parameter_sharding(model.mesh, "EMF", high_EMF.shape)
    return Sums(device_put_global(sharding, high_EMF), device_put_global(sharding, low_EMF))


def _shape(model: Model, layers: list[int]) -> tuple[int, int, int]:
    return len(layers), model.config.F, model.config.F


@jax.jit
def add_batch(model: Model, token_BT, position_BT, segment_BT, layer_E, sums: Sums) -> Sums:
    """Add k k^T of a batch's tokens to the sums, for each layer asked for.

    Args:
      model: with its edits.
      token_BT: packed rows.
      position_BT: each token's position in its text.
      segment_BT: which text it belongs to; 0: padding, which does not count.
      layer_E: the layers, ascending.
      sums: so far.
    """
    batch_EMF = _sum_batch(model, token_BT, position_BT, segment_BT, layer_E)
    return add_exactly(sums, batch_EMF)


def add_exactly(sums: Sums, batch_EMF: jax.Array) -> Sums:
    """Add a batch's sum, and keep what rounding leaves out of it; traced."""
    high_EMF = sums.high_EMF + batch_EMF

    # What the addition lost, exactly: the smaller of the two less what arrived of it.
    sum_is_larger_EMF = jnp.abs(sums.high_EMF) >= jnp.abs(batch_EMF)
    lost_EMF = jnp.where(
        sum_is_larger_EMF,
        (sums.high_EMF - high_EMF) + batch_EMF,
        (batch_EMF - high_EMF) + sums.high_EMF,
    )
    return Sums(high_EMF, sums.low_EMF + lost_EMF, sums.of_gradients)


def _sum_batch(model: Model, token_BT, position_BT, segment_BT, layer_E) -> jax.Array:
    """Sum k k^T over the tokens of a batch, for each layer asked for, float32 [E, M, F].

    A key is what the weight multiplies: beside bfloat16 weights rounded to that, and their products
    are exact in float32.
    """
    attn_context = causal_attention(position_BT, segment_BT)
    counts_BT = (segment_BT > 0).astype(jnp.float32)

    def body(layer, carry):
        h_BTD, sum_EMF = carry
        h_BTD, inputs = run_layer(model, h_BTD, attn_context, layer)
        key_BTF = inputs.key_BTF * counts_BT[..., None]
        key_QF = key_BTF.reshape(-1, key_BTF.shape[-1])
        slot = jnp.argmax(layer_E == layer)

        def add():
            product_MF = linear("QM,QF->MF", key_QF, key_QF.astype(model.dtype), None)
            return sum_EMF.at[slot].add(product_MF)

        sum_EMF = jax.lax.cond(jnp.any(layer_E == layer), add, lambda: sum_EMF)
        return h_BTD, jax.lax.with_sharding_constraint(sum_EMF, sharding)

    shape = (layer_E.shape[0], model.config.F, model.config.F)
    sharding = parameter_sharding(model.mesh, "EMF", shape)
    carry = (embed(model, token_BT, position_BT), jnp.zeros(shape))
    _, sum_EMF = jax.lax.fori_loop(0, layer_E[-1] + 1, body, carry)
    return sum_EMF


def total_of(sums: Sums, e: int) -> np.ndarray:
    """Return one layer's sum in float64 [M, F], on the host."""
    return to_host(sums.high_EMF[e]).astype(np.float64) + to_host(sums.low_EMF[e])


def write_sums(
    path: Path, made_from: dict[str, Any], layers: list[int], n_texts: int, sums: Sums
) -> None:
    """Write the sums of an unfinished pass, by the first process.

    Args:
      path: the file.
      made_from: the pass: its model, texts and settings.
      layers: of the sums.
      n_texts: how many texts they are of.
      sums: gathered from the devices of all processes.
    """
    arrays = {"high": to_host(sums.high_EMF), "low": to_host(sums.low_EMF)}
    if sums.of_gradients is not None:
        high, low = GRADIENTS
        arrays[high] = to_host(sums.of_gradients.high_EMF)
        arrays[low] = to_host(sums.of_gradients.low_EMF)
    described = {"made_from": {**made_from, "layers": layers}, "n_texts": n_texts}
    described["digest"] = _digest(arrays, described)
    if is_first_process():
        write_atomic(path, to_safetensors(arrays, {"part": json.dumps(described)}))


def _digest(arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> str:
    """Digest sums together with what is said of them."""
    content = json.dumps([described["made_from"], described["n_texts"]], sort_keys=True)
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def read_sums(
    model: Model, path: Path, made_from: dict[str, Any], layers: list[int]
) -> tuple[int, Sums]:
    """Read what `write_sums` wrote of the same pass.

    Returns:
      How many texts are done, and their sums on the devices.

    Raises:
      ValueError: where the file is damaged, or of another pass.
    """
    try:
        described, arrays = _read_part(path)
    except (SafetensorError, TypeError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not an unfinished pass of jaxedit stats ({error}); remove it to begin anew"
        ) from error

    # Sums go on only with the same model, texts, settings and layers.
    theirs, ours = described["made_from"], {**made_from, "layers": layers}
    differing = sorted(
        key
        for key in ours
        if theirs.get(key) != ours[key] and (key != "fingerprints" or key in theirs)
    )
    if differing:
        shown = "; ".join(f"{key}: {theirs.get(key)} there, {ours[key]} now" for key in differing)
        raise ValueError(
            f"{path} is an unfinished pass over something else. {shown}. Remove it to begin anew"
        )
    shapes = {name: _shape(model, layers) for name in ("high", "low")}
    if made_from.get("gradients"):
        E, D = len(layers), model.config.D
        shapes |= {name: (E, D, D) for name in GRADIENTS}
    for name, shape in shapes.items():
        if name not in arrays or (arrays[name].shape, arrays[name].dtype) != (shape, np.float32):
            raise ValueError(
                f"{path} does not hold the sums of layers {layers}; remove it to begin anew"
            )
    if "digest" not in described:
        logging.getLogger("jaxedit").warning(
            "%s was written by a version of jaxedit that took no digest of it: it cannot be "
            "verified",
            path,
        )
    sums = _place(model, arrays["high"], arrays["low"])
    if made_from.get("gradients"):
        sums = sums._replace(of_gradients=_place(model, *(arrays[name] for name in GRADIENTS)))
    return described["n_texts"], sums


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an unfinished pass: what it says of itself, and its sums.

    Raises:
      ValueError: on another content, or one that is not as it was written.
    """
    with safe_open(path, framework="numpy") as file:
        metadata = (file.metadata() or {}).get("part", "")
        described = parse_json(metadata, "its metadata 'part'")
        made_from, n_texts = described.get("made_from"), described.get("n_texts")
        if not isinstance(made_from, dict) or type(n_texts) is not int or n_texts < 0:
            raise ValueError(f"its metadata is {shorten_json(described)}")
        if {"high", "low"} - set(file.keys()):
            raise ValueError("it holds no sums")
        names = [name for name in ("high", "low", *GRADIENTS) if name in set(file.keys())]
        arrays = {name: file.get_tensor(name) for name in names}
    digest = described.get("digest")
    if digest is not None and digest != _digest(arrays, described):
        raise ValueError("its content does not have its digest")
    return described, arrays
