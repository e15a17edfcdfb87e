"""Files of trained hypernetworks: one .safetensors file with parameters and moments.

Arrays have the names of `jaxedit.mend.network.init_parameters` (and "step_sizes") behind
"parameters/", and "moments/GROUP/FIELD"; one entry of metadata, "mend", holds the layout and what
it was trained with as JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxedit.distributed import is_first_process
from jaxedit.files import parse_json, to_json, to_safetensors, write_atomic
from jaxedit.mend.hypernetwork import STEP_SIZES, Hypernetwork
from jaxedit.mend.moments import Moments, init_moments
from jaxedit.mend.network import Layout, Switches, make_layout, parameter_shapes
from jaxedit.mesh import to_host
from jaxedit.models.model import Model


def write_network(
    path: Path, hypernetwork: Hypernetwork, model: Model, described: Mapping[str, Any]
) -> None:
    """Write a hypernetwork, by the first process.

    Args:
      path: the file.
      hypernetwork: trained on the model.
      model: whose fingerprint and sizes are remembered.
      described: what it was trained with, and what was measured.
    """
    parameters = {
        f"parameters/{name}": to_host(array) for name, array in hypernetwork.parameters.items()
    }
    moments = {
        f"moments/{group}/{field}": to_host(array)
        for group, own in hypernetwork.moments.items()
        for field, array in own._asdict().items()
    }
    layout = hypernetwork.layout
    about = {
        "switches": layout.switches._asdict(),
        "places": [list(place) for place in layout.places],
        "sizes": {weight: model.base[weight].shape[1:] for weight, _ in layout.places},
        "base": model.rounded_fingerprint,
        **described,
    }
    if is_first_process():
        write_atomic(
            path, to_safetensors(parameters | moments, {"mend": json.dumps(to_json(about))})
        )


def read_network(path: Path) -> tuple[Hypernetwork, str]:
    """Read a hypernetwork.

    Returns:
      It, and the fingerprint of the model that it was trained on.

    Raises:
      ValueError: where the file is not there, is cut short or holds no hypernetwork.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = (file.metadata() or {}).get("mend", "")
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a network of MEND: {error}") from error
    if not metadata:
        raise ValueError(
            f"{path} holds no network of MEND; expected a file of `jaxedit train-mend`, or an "
            "archive of the MEND, MEMIT or EasyEdit repository"
        )
    try:
        about = parse_json(metadata, path)
        switches = Switches(**about["switches"])
        places = tuple((str(weight), int(layer)) for weight, layer in about["places"])
        sizes = {weight: (int(read), int(out)) for weight, (read, out) in about["sizes"].items()}
        layout = make_layout(switches, places, sizes)
        return _assemble(layout, arrays), str(about["base"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: what it says of its network does not fit its arrays ({error!r}); "
            "restore it from a copy"
        ) from error


def _assemble(layout: Layout, arrays: Mapping[str, np.ndarray]) -> Hypernetwork:
    """Put a hypernetwork together out of named arrays.

    Raises:
      ValueError: where one has another shape than the layout asks for, or is not finite; KeyError
        where it is missing.
    """
    shapes = parameter_shapes(layout) | {STEP_SIZES: (len(layout.places),)}
    parameters = {
        name: _checked(f"parameters/{name}", arrays, shape) for name, shape in shapes.items()
    }
    moments = {
        group: Moments(
            *(
                _checked(f"moments/{group}/{field}", arrays, array.shape)
                for field, array in zero._asdict().items()
            )
        )
        for group, zero in init_moments(layout).items()
    }
    return Hypernetwork(parameters, moments, layout)


def _checked(name: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]):
    array = arrays[name]
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}, expected {shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds numbers that are not finite")
    return jnp.asarray(array, jnp.float32)
