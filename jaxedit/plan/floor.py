"""The floor of a phase: what any program would have to do for it, on the devices of a mesh.

    products      those of `jaxedit.flops`, of the tokens that there are, in one pass each
    memory        `jaxedit.bytes_moved`: a device's share of the weights once in each step, of the
                  residual stream once in each layer; arrays as large as a whitener once

Nothing is sent, nothing computed twice, and products and memory do not wait for each other. The
bound of a compiled program beside it says how much of that program is not the phase itself.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxedit.bytes_moved import (
    FLOAT32_BYTES,
    BytesMoved,
    layers_moved,
    optimisation_moved,
    scoring_moved,
)
from jaxedit.flops import attention_flops, layer_flops, optimisation_flops, scoring_flops
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
    shared = layers_moved(config, model.dtype, layer + 1, n_shared)
    own_streams = layers_moved(config, model.dtype, layer, n_own).streams
    moved = shared.plus(BytesMoved(0.0, own_streams))
    return Floor(float(own_flops + shared_flops), moved.of_device(model.mesh))


def value_floor(model: Model, work: Workload) -> Floor:
    """Run prefixes once, and suffixes through the layers above in each step, with a gradient."""
    config, layer, n_steps = model.config, work.layers[-1], work.v_num_grad_steps
    n_rows = work.n_requests * (work.n_templates + 1)  # with the KL term's prompt
    n_prefix, n_suffix = n_rows * VALUE_SHAPE.prefix, n_rows * VALUE_SHAPE.suffix
    n_read = work.n_requests * (work.n_templates * VALUE_SHAPE.n_read + 1)
    flops = optimisation_flops(config, n_prefix, n_suffix, n_read, layer, n_steps)
    moved = optimisation_moved(config, model.dtype, n_prefix, n_suffix, layer, n_steps)
    return Floor(flops, moved.of_device(model.mesh))


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
    moved = scoring_moved(model.config, model.dtype, n_rows * work.row_tokens, n_layers)
    return Floor(flops, moved.of_device(model.mesh))


def second_moment_floor(model: Model, work: Workload) -> Floor:
    """Run texts up to the last edited layer's key; add the products of keys to E square sums."""
    config, last, E = model.config, work.layers[-1], len(work.layers)
    T = moment_tokens(config)
    n_tokens = count_text_rows(model.mesh, T) * T
    own = last * layer_flops(config) + attention_flops(config)
    flops = n_tokens * (own + 2 * E * config.F**2)
    moved = layers_moved(config, model.dtype, last + 1, n_tokens)
    sums = 2 * E * _square_bytes(model)  # read and written
    return Floor(float(flops), moved.of_device(model.mesh) + sums)


def _square_bytes(model: Model) -> float:
    """Return a device's bytes of one float32 array [F, F], split over all devices."""
    return FLOAT32_BYTES * model.config.F**2 / model.mesh.size
