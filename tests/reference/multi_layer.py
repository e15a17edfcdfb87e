"""An edit taken apart layer by layer: keys and residuals as they were when each was written."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

import jaxedit
from jaxedit.edits.edit import make_edit, to_dense
from jaxedit.solving.hyper import TargetHyper
from jaxedit.solving.keys import compute_keys, compute_values
from jaxedit.solving.packed_prompts import PackedPrompts, pack_prompts
from jaxedit.solving.site import Site
from jaxedit.solving.value import optimise_values

GROUPS = (("{}",), ("I am a little. {}", "The other day I was talking to. {}"))
TEMPLATES = tuple(template for group in GROUPS for template in group)
LAYERS = (2, 3)
REQUESTS = [
    jaxedit.Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    jaxedit.Request("The mother tongue of {} is", "Danielle Darrieux", "the English language"),
    jaxedit.Request("{} plays the instrument", "Miles Davis", "violin"),
]


class Step(NamedTuple):
    """One layer's write in float64: K, R [requests, D] and the update made."""

    layer: int
    key_FI: np.ndarray
    residual_ID: np.ndarray
    delta_FD: np.ndarray


def packed(model, requests: list) -> PackedPrompts:
    """Pack requests in GROUPS."""
    return pack_prompts(model, requests, GROUPS, "group_means")


def steps(model, requests: list, deltas, z_ID: np.ndarray) -> Iterator[Step]:
    """Replay the writes of one pass over LAYERS that `deltas` are."""
    prompts = packed(model, requests)
    for i, delta in enumerate(deltas):
        key_IF = np.float64(compute_keys(model, prompts, delta.layer)[0])
        now_ID = np.float64(compute_values(model, prompts, LAYERS[-1]))
        residual_ID = (z_ID - now_ID) / (len(LAYERS) - i)
        yield Step(delta.layer, key_IF.T, residual_ID, to_dense(delta))
        model = jaxedit.apply(model, make_edit(model, [delta]))


def optimised_z(model, requests: list, hyper: TargetHyper) -> np.ndarray:
    """Optimise the values z after the last layer, in float64."""
    found = optimise_values(model, requests, TEMPLATES, LAYERS[-1], hyper, Site.RESIDUAL)
    return np.float64(found.init_ID + found.delta_ID)


def golden_moments(shared, family: str) -> dict[int, np.ndarray]:
    """Read C of LAYERS."""
    tensors = load_file(shared / "golden" / family / "expected.safetensors")
    return {layer: np.float64(tensors[f"mom2/{layer}"]) for layer in LAYERS}
