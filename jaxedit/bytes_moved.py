"""The bytes that a study's phases must move between a device's memory and its cores.

Weights once for each pass over what a device computes at a time, and the residual stream, float32,
read and written once in each layer. What a program moves besides (copies, keys and values, logits)
is left out."""

from typing import NamedTuple

from jax import numpy as jnp
from jax.sharding import Mesh

from jaxedit.flops import head_flops, layer_flops
from jaxedit.models.config import DecoderConfig

FLOAT32_BYTES = 4


class BytesMoved(NamedTuple):
    """What all devices of a mesh would move if there were one.

    Attributes:
      weights: of weights, which are split over the mesh axis `model`.
      streams: of the residual stream, whose rows are split over `data`.
    """

    weights: float
    streams: float

    def plus(self, other: "BytesMoved") -> "BytesMoved":
        """Return the sum of both."""
        return BytesMoved(self.weights + other.weights, self.streams + other.streams)

    def of_device(self, mesh: Mesh) -> float:
        """Return the bytes of one device of a mesh."""
        return self.weights / mesh.shape["model"] + self.streams / mesh.shape["data"]


NOTHING_MOVED = BytesMoved(0.0, 0.0)


def layers_moved(
    config: DecoderConfig, dtype: jnp.dtype, n_layers: int, n_tokens: int, n_passes: int = 1
) -> BytesMoved:
    """Return the bytes of passes of tokens through layers.

    Args:
      config: the model's.
      dtype: of its weights.
      n_layers: how many layers.
      n_tokens: tokens of a pass.
      n_passes: how many passes.
    """
    of_weights = layer_flops(config) / 2 * jnp.dtype(dtype).itemsize  # a multiply-add for each
    of_stream = 2 * FLOAT32_BYTES * config.D * n_tokens
    return BytesMoved(n_passes * n_layers * of_weights, n_passes * n_layers * of_stream)


def head_moved(config: DecoderConfig, dtype: jnp.dtype, n_passes: int = 1) -> BytesMoved:
    """Return the bytes of the output projection's weights."""
    return BytesMoved(n_passes * head_flops(config) / 2 * jnp.dtype(dtype).itemsize, 0.0)


def scoring_moved(
    config: DecoderConfig, dtype: jnp.dtype, n_tokens: int, n_layers: int
) -> BytesMoved:
    """Return the bytes of scoring texts: some layers, and the logits."""
    return layers_moved(config, dtype, n_layers, n_tokens).plus(head_moved(config, dtype))


def optimisation_moved(
    config: DecoderConfig,
    dtype: jnp.dtype,
    n_prefix: int,
    n_suffix: int,
    layer: int,
    n_steps: int,
) -> BytesMoved:
    """Return the bytes of an optimisation of values, as `optimisation_flops` describes it.

    A step reads each weight above the edited layer once; its pass and its gradient each write the
    residual stream.
    """
    n_above = config.L - 1 - layer
    once = layers_moved(config, dtype, config.L, n_prefix + n_suffix)
    weights = layers_moved(config, dtype, n_above, 0, n_steps)
    streams = layers_moved(config, dtype, n_above, n_suffix, 2 * n_steps - 1).streams
    steps = weights.plus(head_moved(config, dtype, n_steps)).plus(BytesMoved(0.0, streams))
    return once.plus(steps)
