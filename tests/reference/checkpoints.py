"""Changing and converting HF checkpoints on disk, to see what reading them says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import jaxedit
from jaxedit.cli import run


def edit_json(path: Path, **changes) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change a safetensors file's dictionary of tensors in place."""
    tensors = load_file(path)
    change(tensors)
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})


def convert(model: Path, out: Path) -> int:
    """Run the command that converts a checkpoint; return its exit status."""
    return run(["jaxedit", "convert", f"--model={model}", f"--out={out}"])


def assert_same_arrays(ours: jaxedit.Model, theirs: jaxedit.Model) -> None:
    """Assert that two models have one configuration and the same base weights, bit for bit."""
    assert ours.config == theirs.config
    assert ours.base.keys() == theirs.base.keys()
    for name, array in theirs.base.items():
        np.testing.assert_array_equal(ours.base[name], array, err_msg=name)
