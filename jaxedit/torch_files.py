"""Files of torch, read as weights only: nothing in them is run.

This is the one place that calls torch.load.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxedit.messages import first_line


class Ignored:
    """Stands for an object of a torch file that is left out: none of its own code is run."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_torch(path: Path, ignored: Sequence[str] = (), map_file: bool = False) -> dict[str, Any]:
    """Read the dictionary in a torch file.

    Args:
      path: of the file.
      ignored: dotted names of classes whose objects are left out.
      map_file: read a tensor from the disk when it is used; for files that are zip archives.

    Raises:
      ValueError: where torch is not installed, or the file holds no dictionary, or something else
        than weights.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is a torch file, and torch is not installed: pip install 'jaxedit[verify]', "
            "or save it as .safetensors"
        ) from error
    stand_ins: list[Any] = [(Ignored, name) for name in ignored]
    try:
        with torch.serialization.safe_globals(stand_ins):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=map_file)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise ValueError(
            f"{path} cannot be read as a torch file of weights only: {reason}"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{path} holds a {type(found).__name__}; expected a dictionary of weights' names"
        )
    return {str(name): value for name, value in found.items()}
