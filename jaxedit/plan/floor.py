"""The floor of a phase: what any program would have to do for it, on the devices of a mesh.

    products      those of `jaxedit.flops`, of the tokens that there are, in one pass each
    weights       a device's share over the mesh axis `model`, read once in each step
    activations   the residual stream of a device's tokens, float32, read and written once in each
                  layer; arrays as large as a whitener once

Nothing is sent, nothing computed twice, and products and memory do not wait for each other. The
bound of a compiled program beside it says how much of that program is not the phase itself.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.flops import (
    attention_flops,
    head_flops,
    layer_flops,
    optimisation_flops,
    scoring_flops,
)
from jaxedit.models.model import Model
from jaxedit.plan.chips import Chip
from jaxedit.plan.workload import (
    PROMPT_TOKENS,
    SHARED_TOKENS,
    VALUE_SHAPE,
    Workload,
    count_text_rows,
    moment_tokens,
)

FLOAT32_BYTES = 4


class Floor(NamedTuple):
    """What a phase needs at the least.

    Attributes:
      flops: of all devices together.
      moved_bytes: of one device, from and to its memory.
    """

    flops: float
    moved_bytes: float


def floor_seconds(floor: Floor, mesh: Mesh, chip: Chip) -> float | None:
    """Return the longer one of products and memory; None where the chip's rates are not known."""
    if not (chip.flops_per_s and chip.hbm_bandwidth):
        return None
    products_s = floor.flops / mesh.size / chip.flops_per_s
    return max(products_s, floor.moved_bytes / chip.hbm_bandwidth)


def load_floor(model: Model, work: Workload) -> Floor:
    """Need nothing: what is on a disk has no part in a plan."""
    return Floor(0.0, 0.0)


def key_floor(model: Model, work: Workload) -> Floor:
    """Run templates through all edited layers, the requests' own tokens up to the last key."""
    config, layer, C = model.config, work.layers[-1], work.n_templates + 1
    n_own, n_shared = C * work.n_requests * PROMPT_TOKENS, C * SHARED_TOKENS
    own_flops = n_own * (layer * layer_flops(config) + attention_flops(config))
    shared_flops = n_shared * (layer + 1) * layer_flops(config)
    weights = (layer + 1) * _layer_bytes(model)
    streams = _stream_bytes(model, n_own * layer + n_shared * (layer + 1))
    return Floor(float(own_flops + shared_flops), weights + streams)


def value_floor(model: Model, work: Workload) -> Floor:
    """Run prefixes once, and suffixes through the layers above in each step, with a gradient."""
    config, layer, n_steps = model.config, work.layers[-1], work.v_num_grad_steps
    n_rows = work.n_requests * (work.n_templates + 1)  # with the KL term's prompt
    n_prefix, n_suffix = n_rows * VALUE_SHAPE.prefix, n_rows * VALUE_SHAPE.suffix
    n_read = work.n_requests * (work.n_templates * VALUE_SHAPE.n_read + 1)
    flops = optimisation_flops(config, n_prefix, n_suffix, n_read, layer, n_steps)
    n_above = config.L - 1 - layer
    step_weights = n_above * _layer_bytes(model) + _head_bytes(model)
    once = config.L * _layer_bytes(model) + _stream_bytes(model, (n_prefix + n_suffix) * config.L)
    step_streams = _stream_bytes(model, n_suffix * n_above)
    passes = 2 * n_steps - 1  # a pass and its gradient each write their activations
    return Floor(flops, once + n_steps * step_weights + passes * step_streams)


def solve_floor(model: Model, work: Workload) -> Floor:
    """Multiply keys with the whitener and with its transpose, in each edited layer."""
    F, R, E = model.config.F, work.n_requests, len(work.layers)
    flops = E * (2 * 2 * F**2 * R + 2 * F * R**2 + 2 * F * R * model.config.D)
    return Floor(float(flops), 2 * E * _square_bytes(model))


def perplexity_floor(model: Model, work: Workload) -> Floor:
    """Score texts from the lowest edited layer on."""
    return _scoring_floor(model, work, model.config.L - work.layers[0])


def whole_perplexity_floor(model: Model, work: Workload) -> Floor:
    """Score texts through all layers."""
    return _scoring_floor(model, work, model.config.L)


def _scoring_floor(model: Model, work: Workload, n_layers: int) -> Floor:
    n_rows = count_text_rows(model.mesh, work.row_tokens)
    flops = scoring_flops(model.config, np.full(n_rows, work.row_tokens), n_layers)
    weights = n_layers * _layer_bytes(model) + _head_bytes(model)
    return Floor(flops, weights + _stream_bytes(model, n_rows * work.row_tokens * n_layers))


def second_moment_floor(model: Model, work: Workload) -> Floor:
    """Run texts up to the last edited layer's key; add the products of keys to E square sums."""
    config, last, E = model.config, work.layers[-1], len(work.layers)
    T = moment_tokens(config)
    n_tokens = count_text_rows(model.mesh, T) * T
    own = last * layer_flops(config) + attention_flops(config)
    flops = n_tokens * (own + 2 * E * config.F**2)
    sums = 2 * E * _square_bytes(model)  # read and written
    moved = (last + 1) * _layer_bytes(model) + _stream_bytes(model, n_tokens * last) + sums
    return Floor(float(flops), moved)


def _layer_bytes(model: Model) -> float:
    """Return a device's bytes of one layer's weights: one multiply-add for each of them."""
    n_weights = layer_flops(model.config) / 2
    return n_weights * model.dtype.itemsize / model.mesh.shape["model"]


def _head_bytes(model: Model) -> float:
    return head_flops(model.config) / 2 * model.dtype.itemsize / model.mesh.shape["model"]


def _stream_bytes(model: Model, n_tokens_in_layers: int) -> float:
    """Return a device's bytes of the residual stream, read and written, of tokens times layers."""
    per_device = n_tokens_in_layers / model.mesh.shape["data"]
    return 2 * FLOAT32_BYTES * model.config.D * per_device


def _square_bytes(model: Model) -> float:
    """Return a device's bytes of one float32 array [F, F], split over all devices."""
    return FLOAT32_BYTES * model.config.F**2 / model.mesh.size
