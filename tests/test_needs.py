"""Bytes that must be moved, by the weights that models hold; what phases need, by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import jaxedit
from jaxedit.bytes_moved import BytesMoved, layers_moved, optimisation_moved, scoring_moved
from jaxedit.flops import count_positions, scoring_flops, value_flops
from jaxedit.needs import Need, scoring_need, value_need

TEMPLATES = ("{}", "I am. {}")
REQUESTS = [
    jaxedit.Request("{} lives in", "Bob", "Paris"),
    jaxedit.Request("{} is based in", "The whole of BP", "Munich"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_a_pass_reads_every_matrix_of_its_layers_once(shared, family, dtype):
    model = jaxedit.load(str(shared / "golden" / family), dtype=dtype)
    matrices = [
        array for name, array in model.base.items() if name.startswith(("attn/w_", "mlp/w_"))
    ]
    moved = layers_moved(model.config, model.dtype, model.config.L, n_tokens=7)
    assert moved.weights == sum(array.nbytes for array in matrices)
    assert moved.streams == 2 * 4 * 7 * model.config.D * model.config.L
    with_head = scoring_moved(model.config, model.dtype, 7, model.config.L)
    head_bytes = model.config.D * model.config.V * model.dtype.itemsize
    assert with_head == (moved.weights + head_bytes, moved.streams)


def test_an_optimisation_reads_the_weights_above_in_each_step(golden):
    config, dtype = golden("gpt2").config, golden("gpt2").dtype
    layer, n_steps = 3, 5
    one, two = (
        optimisation_moved(config, dtype, n_prefix=40, n_suffix=9, layer=layer, n_steps=n)
        for n in (n_steps, n_steps + 1)
    )
    above = layers_moved(config, dtype, config.L - 1 - layer, 9)
    head_bytes = config.D * config.V * dtype.itemsize
    assert two.weights - one.weights == above.weights + head_bytes
    assert two.streams - one.streams == 2 * above.streams  # of a pass and of its gradient
    once = layers_moved(config, dtype, config.L, 49)
    assert one.weights == once.weights + n_steps * (above.weights + head_bytes)
    assert one.streams == once.streams + (2 * n_steps - 1) * above.streams


def test_a_device_moves_its_share():
    mesh: Any = SimpleNamespace(shape={"data": 4, "model": 2})
    assert BytesMoved(weights=10.0, streams=12.0).of_device(mesh) == 10 / 2 + 12 / 4


def test_requests_together_read_the_weights_as_often_as_the_longest(golden):
    model, layer = golden("gpt2"), 3
    together = value_need(model, REQUESTS, TEMPLATES, layer, [2, 4])
    alone = [
        value_flops(model, request, TEMPLATES, layer, n)
        for request, n in zip(REQUESTS, (2, 4), strict=True)
    ]
    assert together.flops == sum(alone)
    counts = [count_positions(model, request, TEMPLATES) for request in REQUESTS]
    n_prefix, n_suffix, _ = map(sum, zip(*counts, strict=True))
    moved = optimisation_moved(model.config, model.dtype, n_prefix, n_suffix, layer, 4)
    assert together.moved == moved


def test_needs_add_up_and_are_shared(golden):
    model, lengths = golden("gpt2"), np.array([5, 9])
    need = scoring_need(model, lengths, 2)
    assert need.flops == scoring_flops(model.config, lengths, 2)
    assert need.plus(need).shared_by(2) == need
    assert Need(6.0, BytesMoved(4.0, 2.0)).shared_by(2) == (3.0, (2.0, 1.0))
