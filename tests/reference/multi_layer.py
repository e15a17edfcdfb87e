"""An edit layer by layer: keys and residuals as they were when each was written."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

import jaxedit
from jaxedit.edits.edit import make_edit, to_dense
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.packed_prompts import pack_prompts

GROUPS = (("{}",), ("I am a little. {}", "The other day I was talking to. {}"))
TEMPLATES = tuple(template for group in GROUPS for template in group)
LAYERS = (2, 3)
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "the English language"),
    jaxedit.Request("{} plays the instrument", "Miles Davis", "violin"),
]


class Step(NamedTuple):
    """One layer's write in float64: K, R [n, D] and the update made."""

    layer: int
    key_FN: np.ndarray
    value_ND: np.ndarray
    delta_FD: np.ndarray


def steps(model, requests: list, deltas, z_ND: np.ndarray) -> Iterator[Step]:
    """The writes of one pass over LAYERS that `deltas` are."""
    questions = pack_prompts(model, requests, GROUPS, "group_means")
    for i, delta in enumerate(deltas):
        key_NF, now_ND = (
            np.float64(compute_keys(model, questions, delta.layer)[0]),
            np.float64(compute_values(model, questions, LAYERS[-1])),
        )
        yield Step(delta.layer, key_NF.T, (z_ND - now_ND) / (len(LAYERS) - i), to_dense(delta))
        model = jaxedit.apply(model, make_edit(model, [delta]))


def golden_moments(shared, family: str) -> dict[int, np.ndarray]:
    """C of LAYERS."""
    tensors = load_file(shared / "golden" / family / "expected.safetensors")
    return {layer: np.float64(tensors[f"mom2/{layer}"]) for layer in LAYERS}


def relative(found, expected) -> float:
    """The distance in the Frobenius norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
