"""Rotary position embeddings (Su et al. 2021), in both layouts and with the families' scalings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.models.fields import Fields


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `dims` entries of a head.

    Attributes:
      theta: the base of the frequencies.
      dims: how many entries are rotated. Odd `dims` (GPT-NeoX, a quarter of a narrow head) take one
        entry more, as HF does.
      interleaved: whether neighbours are paired (GPT-J); otherwise entry i is paired with
        i + dims/2 (Llama, GPT-NeoX).
      factors: divisors of the pairs' frequencies, one for each pair.
    """

    theta: float
    dims: int
    interleaved: bool = False
    factors: tuple[float, ...] | None = None


def inverse_frequencies(theta: float, dims: int) -> np.ndarray:
    """Return the radians a position of each pair (half of `dims`, rounded up), before scaling."""
    return theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)


# HF's types of `rope_scaling`, and what an entry of each holds besides the type.
_SCALINGS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def scaling_factors(theta: float, dims: int, scaling: dict) -> tuple[float, ...] | None:
    """Return the frequencies' divisors of an HF `rope_scaling` (or `rope_parameters`) entry.

    Raises:
      ValueError: on a type other than "default", "linear" and "llama3", on an entry with more or
        less than its type has, and on a number that is none or out of range.
    """
    entry = Fields(scaling, "rotary scaling")
    kind = entry.text("rope_type", None) or entry.text("type", None) or "default"
    if kind not in _SCALINGS:
        raise ValueError(
            f"rotary scaling of type {kind!r} is not supported; supported: {', '.join(_SCALINGS)}"
        )
    held = {name for name, value in scaling.items() if value is not None} - {"rope_type", "type"}
    if held != _SCALINGS[kind]:
        expected = sorted(_SCALINGS[kind]) or "nothing else"
        raise ValueError(f"rotary scaling of type {kind!r} has {expected}, got {sorted(held)}")
    inverse = inverse_frequencies(theta, dims)
    if kind == "default":
        return None
    if kind == "linear":
        return (_factor(entry),) * len(inverse)
    # llama3: long wavelengths are stretched by `factor`, short ones kept, those between blended.
    turns = entry.count("original_max_position_embeddings") * inverse / (2 * math.pi)
    low = entry.number("low_freq_factor")
    high = entry.number("high_freq_factor", above=low)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return tuple((1 / (kept + (1 - kept) / _factor(entry))).tolist())


def _factor(entry: Fields) -> float:
    """Take how many times as long a text may be; float32 frequencies hold up to 1e30 times."""
    return entry.number("factor", most=1e30)


def rotate(rope: Rope, x_BTNH: jax.Array, position_BT: jax.Array) -> jax.Array:
    """Rotate the first `dims` (rounded up to even) entries of every head by its position's angles.

    Args:
      rope: base, width and layout.
      x_BTNH: queries or keys.
      position_BT: their positions.
    """
    inverse = inverse_frequencies(rope.theta, rope.dims) / np.asarray(rope.factors or 1.0)
    angle = position_BT[..., None, None].astype(jnp.float32) * inverse.astype(np.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotated, rest = jnp.split(x_BTNH, [2 * len(inverse)], axis=-1)
    if rope.interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        rotated = pairs.reshape(rotated.shape)
    else:
        a, b = jnp.split(rotated, 2, axis=-1)
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([rotated, rest], axis=-1)
