"""Reading the .safetensors files of second moments that `jaxedit stats` writes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxedit.files import parse_json, shorten_json

NAME = re.compile(r"(mom2|grad2)/(0|[1-9][0-9]{0,5})")  # of a layer's matrix in a file


def read_moments(
    path: Path,
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[str, Any]]:
    """Read a file of `jaxedit stats`: layer -> matrix of keys, of gradients, and what it says.

    Raises:
      ValueError: where the file is missing, cut short, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"there are no second moments at {path}; jaxedit stats makes them")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = (file.metadata() or {}).get("stats")
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names if NAME.fullmatch(name)}
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}"
        ) from error
    if metadata is None or len(arrays) < len(names) or not names:
        raise ValueError(
            f"{path} holds {sorted(names)[:3]}, not second moments written by jaxedit stats"
        )
    about = parse_json(metadata, f"{path}: its metadata 'stats'")
    n_tokens, made_from = about.get("n_tokens"), about.get("made_from")
    if type(n_tokens) is not int or not isinstance(made_from, dict):
        raise ValueError(
            f"{path}: its metadata must hold a whole number 'n_tokens' and an object 'made_from', "
            f"as jaxedit stats writes them; got {shorten_json(about)}"
        )
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"{path}: {name} is {array.dtype}; jaxedit stats writes float32")
    held: dict[str, dict[int, np.ndarray]] = {"mom2": {}, "grad2": {}}
    for name, array in arrays.items():
        kind, _, layer = name.partition("/")
        held[kind][int(layer)] = array
    return held["mom2"], held["grad2"], about
