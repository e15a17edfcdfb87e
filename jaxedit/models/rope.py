"""Rotary position embeddings (Su et al. 2021), in both layouts and with the families' scalings."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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
      attention_factor: times what is rotated of queries and keys (YaRN, LongRoPE).
      longest: tokens of the longest text that these frequencies are for, where a longer one has
        others; None: all texts have these.
    """

    theta: float
    dims: int
    interleaved: bool = False
    factors: tuple[float, ...] | None = None
    attention_factor: float = 1.0
    longest: int | None = None

    @property
    def frequency(self) -> np.ndarray:
        """The radians a position of each pair, float32."""
        inverse = inverse_frequencies(self.theta, self.dims) / np.asarray(self.factors or 1.0)
        return inverse.astype(np.float32)


def inverse_frequencies(theta: float, dims: int) -> np.ndarray:
    """Return the radians a position of each pair (half of `dims`, rounded up), before scaling."""
    return theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)


class Rotation(NamedTuple):
    """What one layer's rotary embedding does, possibly traced.

    Attributes:
      frequency: radians a position of each pair; of layers without rotary positions 0.
      factor: times what is rotated.
      dims: entries of a head that are rotated.
      interleaved: as in `Rope`.
    """

    frequency: Any
    factor: Any
    dims: int
    interleaved: bool


def rotation_at(ropes: Sequence[Rope | None], layer) -> Rotation | None:
    """Return what the rotary embedding of a layer does; None where no layer has one.

    Args:
      ropes: of each layer; they differ in frequencies and factors only.
      layer: which, possibly traced.
    """
    distinct = dict.fromkeys(ropes)
    some = next((rope for rope in distinct if rope is not None), None)
    if some is None:
        return None
    if len(distinct) == 1:
        return Rotation(some.frequency, some.attention_factor, some.dims, some.interleaved)
    still = np.zeros_like(some.frequency)
    frequency_L = [still if rope is None else rope.frequency for rope in ropes]
    factor_L = [1.0 if rope is None else rope.attention_factor for rope in ropes]
    tables = (jnp.asarray(np.asarray(each_L, np.float32)) for each_L in (frequency_L, factor_L))
    frequency, factor = (table_L[layer] for table_L in tables)
    return Rotation(frequency, factor, some.dims, some.interleaved)


def rotate(rotation: Rotation, x_BTNH: jax.Array, position_BT: jax.Array) -> jax.Array:
    """Rotate the first entries of every head by its position's angles.

    Args:
      rotation: of the layer.
      x_BTNH: queries or keys.
      position_BT: their positions.
    """
    angle = position_BT[..., None, None].astype(jnp.float32) * rotation.frequency
    cos, sin = jnp.cos(angle) * rotation.factor, jnp.sin(angle) * rotation.factor
    rotated, rest = jnp.split(x_BTNH, [rotation.dims + rotation.dims % 2], axis=-1)
    if rotation.interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        rotated = pairs.reshape(rotated.shape)
    else:
        a, b = jnp.split(rotated, 2, axis=-1)
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([rotated, rest], axis=-1)
