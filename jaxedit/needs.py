"""What the phases of a study need on any machine: useful FLOPs, and bytes that must be moved.

`jaxedit.bench` compares them with what a machine does, `jaxedit.plan` with what is compiled."""

from typing import NamedTuple

import numpy as np

from jaxedit.bytes_moved import (
    FLOAT32_BYTES,
    BytesMoved,
    layers_moved,
    optimisation_moved,
    scoring_moved,
)
from jaxedit.edits.request import Request
from jaxedit.flops import (
    attention_flops,
    count_positions,
    layer_flops,
    optimisation_flops,
    scoring_flops,
)
from jaxedit.models.model import Model


class Need(NamedTuple):
    """What a phase needs.

    Attributes:
      flops: useful ones.
      moved: the bytes that must be moved.
    """

    flops: float
    moved: BytesMoved

    def plus(self, other: "Need") -> "Need":
        """Return the sum of both."""
        return Need(self.flops + other.flops, self.moved.plus(other.moved))

    def shared_by(self, n: int) -> "Need":
        """Return the n-th part."""
        weights, streams = self.moved
        return Need(self.flops / n, BytesMoved(weights / n, streams / n))


def value_need(
    model: Model,
    requests: list[Request],
    templates: tuple[str, ...],
    layer: int,
    n_steps_I: list[int],
) -> Need:
    """Return what the values of requests need that are optimised together.

    Args:
      model: gives the tokenizer and the sizes.
      requests: the facts to write.
      templates: context templates with one `{}` each.
      layer: the edited one.
      n_steps_I: forward passes of each request; the weights are read as often as the most.
    """
    config = model.config
    counts = [count_positions(model, request, templates) for request in requests]
    flops = sum(
        optimisation_flops(config, *positions, layer, n_steps)
        for positions, n_steps in zip(counts, n_steps_I, strict=True)
    )
    n_prefix, n_suffix, _ = map(sum, zip(*counts, strict=True))
    moved = optimisation_moved(config, model.dtype, n_prefix, n_suffix, layer, max(n_steps_I))
    return Need(flops, moved)


def scoring_need(model: Model, lengths: np.ndarray, n_layers: int) -> Need:
    """Return what scoring texts of these lengths needs, through some layers."""
    moved = scoring_moved(model.config, model.dtype, int(lengths.sum()), n_layers)
    return Need(scoring_flops(model.config, lengths, n_layers), moved)


def stats_need(model: Model, n_tokens: int, layer: int) -> Need:
    """Return what the second moments of a layer's keys need, of so many tokens."""
    config = model.config
    flops = n_tokens * ((layer + 1) * layer_flops(config) + 2 * config.F**2)
    moved = layers_moved(config, model.dtype, layer + 1, n_tokens)
    square = 2 * FLOAT32_BYTES * config.F**2  # read and written; split as weights are
    return Need(float(flops), moved.plus(BytesMoved(float(square), 0.0)))


def keys_need(model: Model, n_own: int, n_shared: int, layer: int) -> Need:
    """Return what keys of requests need.

    Args:
      model: gives the sizes.
      n_own: the requests' own tokens; they stop at the layer's key, behind its attention.
      n_shared: those that all requests share in a template; they run once, through the whole layer.
      layer: whose keys.
    """
    config = model.config
    own_flops = layer * layer_flops(config) + attention_flops(config)
    flops = n_own * own_flops + n_shared * (layer + 1) * layer_flops(config)
    moved = layers_moved(config, model.dtype, layer + 1, n_own + n_shared)
    return Need(float(flops), moved)
