"""Rows of targets are padded to shapes that requests share, to fewer of them on accelerators."""

import types
from typing import Any

import numpy as np
import pytest

from jaxedit.solving.target_rows import TokenisedTarget, padded_shape

TARGETS = [
    TokenisedTarget(list(range(11)), [10], [3]),
    TokenisedTarget(list(range(9)), [6, 7, 8], [3, 4, 5]),
]


@pytest.mark.parametrize(
    ("platform", "shape"), [("cpu", (16, 3)), ("gpu", (32, 8)), ("tpu", (32, 8))]
)
def test_shapes_are_coarser_where_compiling_takes_longer(platform, shape):
    device = types.SimpleNamespace(platform=platform)
    mesh: Any = types.SimpleNamespace(devices=np.array([device]))
    assert padded_shape(TARGETS, mesh) == shape
