"""The floor of a phase: what any program would have to do for it, on the devices of a mesh.

    products      those of `jaxedit.flops`, of the tokens that there are, in one pass each
    memory        `jaxedit.bytes_moved`: a device's share of the weights once in each step, of the
                  residual stream once in each layer; arrays as large as a whitener once

Nothing is sent, nothing computed twice, and products and memory do not wait for each other. The
bound of a compiled program beside it says how much of that program is not the phase itself.
"""

import numpy as np
from jax.sharding import Mesh

from jaxedit.bytes_moved import (
    FLOAT32_BYTES,
    NOTHING_MOVED,
    BytesMoved,
    layers_moved,
    optimisation_moved,
)
from jaxedit.flops import layer_flops, optimisation_flops
from jaxedit.models.model import Model
from jaxedit.needs import Need, keys_need, scoring_need
from jaxedit.plan.chips import Chip
from jaxedit.plan.workload import (
    PROMPT_TOKENS,
    SHARED_TOKENS,
    VALUE_SHAPE,
    Workload,
    count_text_rows,
    moment_tokens,
)


def floor_seconds(floor: Need, mesh: Mesh, chip: Chip) -> float | None:
    """Return the longer one of products and memory; None where the chip's rates are not known."""
    if not (chip.flops_per_s and chip.hbm_bandwidth):
        return None
    products_s = floor.flops / mesh.size / chip.flops_per_s
    return max(products_s, floor.moved.of_device(mesh) / chip.hbm_bandwidth)


def load_floor(model: Model, work: Workload) -> Need:
    """Need nothing: what is on a disk has no part in a plan."""
    return Need(0.0, NOTHING_MOVED)


def key_floor(model: Model, work: Workload) -> Need:
    """Run templates through all edited layers, the requests' own tokens up to the last key."""
    C = work.n_templates + 1
    n_own, n_shared = C * work.n_requests * PROMPT_TOKENS, C * SHARED_TOKENS
    return keys_need(model, n_own, n_shared, work.layers[-1])


def value_floor(model: Model, work: Workload) -> Need:
    """Run prefixes once, and suffixes through the layers above in each step, with a gradient."""
    config, layer, n_steps = model.config, work.layers[-1], work.v_num_grad_steps
    n_rows = work.n_requests * (work.n_templates + 1)  # with the KL term's prompt
    n_prefix, n_suffix = n_rows * VALUE_SHAPE.prefix, n_rows * VALUE_SHAPE.suffix
    n_read = work.n_requests * (work.n_templates * VALUE_SHAPE.n_read + 1)
    flops = optimisation_flops(config, n_prefix, n_suffix, n_read, layer, n_steps)
    moved = optimisation_moved(config, model.dtype, n_prefix, n_suffix, layer, n_steps)
    return Need(flops, moved)


def solve_floor(model: Model, work: Workload) -> Need:
    """Multiply keys with the whitener and with its transpose, in each edited layer."""
    F, R, E = model.config.F, work.n_requests, len(work.layers)
    flops = E * (2 * 2 * F**2 * R + 2 * F * R**2 + 2 * F * R * model.config.D)
    return Need(float(flops), _squares_moved(model, 2 * E))


def perplexity_floor(model: Model, work: Workload) -> Need:
    """Score texts from the lowest edited layer on."""
    return _scoring_floor(model, work, model.config.L - work.layers[0])


def whole_perplexity_floor(model: Model, work: Workload) -> Need:
    """Score texts through all layers."""
    return _scoring_floor(model, work, model.config.L)


def _scoring_floor(model: Model, work: Workload, n_layers: int) -> Need:
    n_rows = count_text_rows(model.mesh, work.row_tokens)
    return scoring_need(model, np.full(n_rows, work.row_tokens), n_layers)


def second_moment_floor(model: Model, work: Workload) -> Need:
    """Run texts up to the last edited layer's key; add the products of keys to E square sums."""
    config, last, E = model.config, work.layers[-1], len(work.layers)
    T = moment_tokens(config)
    n_tokens = count_text_rows(model.mesh, T) * T
    # Of the last layer all but the product with w_down.
    own = (last + 1) * layer_flops(config) - 2 * config.D * config.F
    flops = n_tokens * (own + 2 * E * config.F**2)
    moved = layers_moved(config, model.dtype, last + 1, n_tokens)
    return Need(float(flops), moved.plus(_squares_moved(model, 2 * E)))  # read and written


def _squares_moved(model: Model, n: int) -> BytesMoved:
    """Return the bytes of n float32 arrays [F, F], which are split over all devices."""
    n_bytes = n * FLOAT32_BYTES * model.config.F**2
    return BytesMoved(n_bytes / model.mesh.shape["data"], 0.0)
