"""An editable weight of a model on the host: its base, and what edits have added to it."""

import numpy as np

from jaxedit.mesh import to_host
from jaxedit.models.model import Model


def base_weight(model: Model, weight: str, layer: int) -> np.ndarray:
    """Return a layer of a weight without edits, as float32 [F, D]."""
    return np.asarray(to_host(model.base[weight][layer]), np.float32)


def sum_of_edits(model: Model, weight: str, layer: int) -> np.ndarray:
    """Return what the model's edits changed of a layer of a weight, float32 [F, D]."""
    slot = int(model.overlay.slot[weight][layer]) if weight in model.overlay.slot else -1
    if slot < 0:
        return np.zeros(model.base[weight].shape[1:], np.float32)
    return to_host(model.overlay.delta[weight][slot])
